//! The values of an agent's own actions by its critic, for attackers on the value.

use steadfast_envs::ObservationBatch;

use super::{Group, Layout};
use crate::explore::greedy;
use crate::head::PolicyHead;
use crate::nn::{Mlp, Trace, Workspace};
use crate::regularizers::value_attack::ActionValue;
use crate::team::SharedInput;

/// True observations and actions of all agents, as critics see them.
#[derive(Default)]
pub(super) struct JointObservation {
    /// `[slot, all observations]`.
    observations: Vec<f32>,
    /// `[slot, all actions]`: what the unattacked policies do most likely.
    actions: Vec<f32>,
    /// `[slot, member, critic input]` of the group in turn.
    rows: Vec<f32>,
    /// `[slot, member, choice]` of the group in turn.
    choices: Vec<f32>,
    values: Vec<f32>,
    inputs: Vec<f32>,
    outputs: Vec<f32>,
    workspace: Workspace,
    d_values: Vec<f32>,
    d_rows: Vec<f32>,
    trace: Trace,
}

impl JointObservation {
    /// Takes in what the agents observe.
    pub(super) fn observe(&mut self, groups: &[Group], layout: &Layout, observed: &ObservationBatch<'_>) {
        let slots = observed.n_slots;
        self.observations.resize(slots * layout.observation, 0.0);
        self.actions.clear();
        self.actions.resize(slots * layout.action, 0.0);
        for group in groups {
            let (net, members) = (&group.actor.net, group.input.members());
            group.input.gather(observed.observations, observed.n_agents, observed.width, &mut self.inputs);
            self.outputs.resize(slots * members * net.output(), 0.0);
            net.forward(&self.inputs, slots * members, &mut self.outputs, &mut self.workspace);
            layout.join_observations(&group.input, &self.inputs, &mut self.observations);
            for (row, outputs) in self.outputs.chunks_exact(net.output()).enumerate() {
                let (slot, agent) = (row / members, group.input.agents[row % members]);
                let action = &mut self.actions[slot * layout.action + layout.actions[agent]..][..layout.widths[agent]];
                if layout.is_discrete {
                    action[greedy(outputs)] = 1.0;
                } else {
                    action.iter_mut().zip(outputs).for_each(|(a, v)| *a = v.tanh());
                }
            }
        }
    }

    /// Prepares for a group; then [`JointObservation::choices`] or [`JointObservation::controls`] have the values of its actions.
    pub(super) fn prepare(&mut self, layout: &Layout, input: &SharedInput, head: &PolicyHead, critic: &Mlp) {
        layout.critic_rows(input, &self.observations, &self.actions, &mut self.rows);
        let PolicyHead::Categorical { n } = *head else { return };
        let width = critic.input();
        let rows = self.rows.len() / width;
        self.choices.resize(rows * n, 0.0);
        self.values.resize(rows, 0.0);
        for choice in 0..n {
            for (i, row) in self.rows.chunks_exact_mut(width).enumerate() {
                let own = &mut row[layout.own_action(input, i)];
                own.fill(0.0);
                own[choice] = 1.0;
            }
            critic.forward(&self.rows, rows, &mut self.values, &mut self.workspace);
            self.values.iter().enumerate().for_each(|(i, value)| self.choices[i * n + choice] = *value);
        }
    }

    /// Values `[slot, member, choice]` of numbered actions of the group.
    pub(super) fn choices(&self) -> &[f32] {
        &self.choices
    }

    /// Values of continuous actions of the group.
    pub(super) fn controls<'a>(&'a mut self, layout: &'a Layout, input: &'a SharedInput, critic: &'a Mlp) -> ContinuousActionValue<'a> {
        ContinuousActionValue { joint: self, layout, input, critic }
    }
}

/// Values of the actions `tanh(output)` of one agent of each row, while all others do what they would.
pub(super) struct ContinuousActionValue<'a> {
    joint: &'a mut JointObservation,
    layout: &'a Layout,
    input: &'a SharedInput,
    critic: &'a Mlp,
}

impl ActionValue for ContinuousActionValue<'_> {
    fn of(&mut self, outputs: &[f32], value: &mut [f32], d_outputs: Option<&mut [f32]>) {
        let JointObservation { rows, d_values, d_rows, trace, .. } = &mut *self.joint;
        let width = self.critic.input();
        let n = self.layout.widths[self.input.agents[0]];
        for (i, (row, outputs)) in rows.chunks_exact_mut(width).zip(outputs.chunks_exact(n)).enumerate() {
            row[self.layout.own_action(self.input, i)].iter_mut().zip(outputs).for_each(|(a, v)| *a = v.tanh());
        }
        self.critic.forward_train(rows, value.len(), trace);
        value.copy_from_slice(trace.output());
        let Some(d_outputs) = d_outputs else { return };
        d_values.clear();
        d_values.resize(value.len(), 1.0);
        d_rows.resize(rows.len(), 0.0);
        self.critic.backward(trace, d_values, None, Some(d_rows));
        for (i, (d, (row, slope))) in
            d_outputs.chunks_exact_mut(n).zip(rows.chunks_exact(width).zip(d_rows.chunks_exact(width))).enumerate()
        {
            let own = self.layout.own_action(self.input, i);
            d.iter_mut().zip(row[own.clone()].iter().zip(&slope[own])).for_each(|(d, (a, slope))| *d = slope * (1.0 - a * a));
        }
    }
}
