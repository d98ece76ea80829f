//! How agents who share a network act: from what they observe to its outputs, attacked or not.

use steadfast_envs::{EnvError, ObservationBatch, SeedTree};

use crate::head::PolicyHead;
use crate::nn::{Mlp, Workspace};
use crate::regularizers::Observed;
use crate::regularizers::attack::{ObservationAttack, ObservationAttackConfig};
use crate::regularizers::lipschitz::Scale;
use crate::regularizers::value_attack::{ActionValue, ChoiceValues, Value, ValueAttack};
use crate::team::SharedInput;

/// An attacker who changes what a trained policy observes.
enum Attack {
    /// So that its outputs change most.
    Outputs(Box<ObservationAttack>),
    /// So that the value is least.
    Value(Box<ValueAttack>),
}

/// Where an attacker on the value finds it.
pub(crate) enum ValueSource<'a> {
    /// Nowhere.
    None,
    /// In a critic of the policy's own inputs.
    State(&'a Mlp),
    /// In the outputs, which are action values themselves.
    Outputs,
    /// In the values of actions.
    Action(&'a mut dyn ActionValue),
}

/// The networks of a group that takes part in acting.
pub(crate) struct Actor<'a> {
    pub(crate) name: &'a str,
    pub(crate) net: &'a Mlp,
    pub(crate) head: &'a PolicyHead,
    pub(crate) input: &'a SharedInput,
    /// For attacks on the value.
    pub(crate) value: ValueSource<'a>,
}

/// Room for acting, and the attacker if there is one.
#[derive(Default)]
pub(crate) struct Acting {
    attack: Option<Attack>,
    unit: Vec<f32>,
    inputs: Vec<f32>,
    outputs: Vec<f32>,
    workspace: Workspace,
}

impl Acting {
    /// From now on the outputs are attacked, or no longer.
    pub(crate) fn set_attack(&mut self, attack: Option<(&ObservationAttackConfig, SeedTree)>) {
        self.attack = attack.map(|(config, seeds)| Attack::Outputs(Box::new(ObservationAttack::new(config, seeds.rng()))));
    }

    /// From now on the value is attacked, or no longer.
    pub(crate) fn set_value_attack(&mut self, attack: Option<(&ObservationAttackConfig, SeedTree)>) {
        self.attack = attack.map(|(config, seeds)| Attack::Value(Box::new(ValueAttack::new(config, seeds.rng()))));
    }

    /// Whether the value is attacked.
    pub(crate) fn attacks_value(&self) -> bool {
        matches!(self.attack, Some(Attack::Value(_)))
    }

    /// Outputs `[slot, member, output]` of the network for all slots.
    ///
    /// # Errors
    /// [`EnvError::Policy`] if one is not finite.
    pub(crate) fn outputs(&mut self, actor: Actor<'_>, observations: &ObservationBatch<'_>) -> steadfast_envs::Result<&[f32]> {
        let Actor { name, net, head, input, value } = actor;
        let members = input.members();
        let rows = observations.n_slots * members;
        input.gather(observations.observations, observations.n_agents, observations.width, &mut self.inputs);
        self.outputs.resize(rows * net.output(), 0.0);
        net.forward(&self.inputs, rows, &mut self.outputs, &mut self.workspace);
        if let Some(attack) = &mut self.attack {
            input.units(Scale::Absolute, &mut self.unit);
            let (inputs, unit, limit) = (&self.inputs, &self.unit, input.limit());
            let observed = Observed { rows, members, inputs, unit, limit, outputs: &self.outputs, head };
            let moved = match (attack, value) {
                (Attack::Outputs(attack), _) => attack.perturb(net, &observed),
                (Attack::Value(attack), ValueSource::State(critic)) => attack.perturb(&mut Value::State(critic), &observed),
                (Attack::Value(attack), ValueSource::Outputs) => {
                    let of = &mut ChoiceValues { values: observed.outputs, n: net.output() };
                    attack.perturb(&mut Value::Action { policy: net, of }, &observed)
                }
                (Attack::Value(attack), ValueSource::Action(of)) => attack.perturb(&mut Value::Action { policy: net, of }, &observed),
                (Attack::Value(_), ValueSource::None) => {
                    return Err(EnvError::Policy(format!("`{name}` has no critic of what it observes")));
                }
            };
            net.forward(moved, rows, &mut self.outputs, &mut self.workspace);
        }
        match self.outputs.iter().find(|v| !v.is_finite()) {
            Some(bad) => Err(EnvError::Policy(format!("output of the network of `{name}` is {bad}"))),
            None => Ok(&self.outputs),
        }
    }
}
