//! What is perturbed, and how strongly.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use steadfast_agents::regularizers::attack::ObservationAttackConfig;
use steadfast_agents::regularizers::lipschitz::Norm;
use steadfast_envs::perturb::{DynamicsConfig, MaliciousActionConfig};
use steadfast_envs::{EnvSpec, PerturbationConfig};

use super::attacker::LearnedAttackerConfig;
use crate::config::load::inline;
use crate::config::report::suggest;
use crate::failure::{Failure, Result};
use crate::plot::robustness::quantity;

/// A perturbation with its levels.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// Name in tables and pictures.
    pub label: String,
    /// What is done; its own strength is replaced by each level in turn.
    pub hardship: Hardship,
    /// Strengths in increasing order, 0 among them: the unperturbed world.
    pub levels: Vec<f64>,
    /// Labels and perturbations of which each run meets the one that hurts it most; one, but for a search.
    pub variants: Vec<(String, Hardship)>,
}

/// An axis as a report shows it, whatever it is that is done.
#[derive(Debug, Clone, PartialEq)]
pub struct Scale {
    /// Name in tables and pictures.
    pub label: String,
    /// Strengths in increasing order, 0 among them.
    pub levels: Vec<f64>,
    /// The axis that cells have; of several, that of the worst score counts for each run and level.
    pub variants: Vec<String>,
    /// What the horizontal axis of a picture shows.
    pub quantity: String,
    /// True if strengths have a course over an episode from which agents can recover.
    pub has_recovery: bool,
}

/// What a trained policy must live with.
#[derive(Debug, Clone, PartialEq)]
pub enum Hardship {
    /// A perturbed world.
    Perturbation(PerturbationConfig),
    /// An attacker who knows the policy and changes what it observes.
    Attack(Target, ObservationAttackConfig),
    /// Some agents are turned and act as an attacker wants who was trained to make the others fail.
    LearnedAttacker(LearnedAttackerConfig),
}

/// An axis with settings that is no perturbation of the world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Table {
    LearnedAttacker(LearnedAttackerConfig),
}

/// What an attacker on observations is after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// That the policy acts as differently as possible.
    Outputs,
    /// That the critic expects as little as possible of what the policy is shown, or of what it does then.
    Value,
}

impl Hardship {
    /// The same at another strength.
    pub fn with_level(&self, level: f64) -> Self {
        match self {
            Self::Perturbation(perturbation) => Self::Perturbation(perturbation.with_level(level)),
            Self::LearnedAttacker(config) => Self::LearnedAttacker(LearnedAttackerConfig { probability: level, ..config.clone() }),
            Self::Attack(target, config) => Self::Attack(*target, ObservationAttackConfig { radius: level, ..config.clone() }),
        }
    }
}

/// The axes of attacks on observations.
const ATTACKS: [(&str, Target, Norm); 4] = [
    ("attack_linf", Target::Outputs, Norm::Linf),
    ("attack_l2", Target::Outputs, Norm::L2),
    ("attack_value_linf", Target::Value, Norm::Linf),
    ("attack_value_l2", Target::Value, Norm::L2),
];

/// The axis of agents that are turned by a trained attacker.
const LEARNED_ATTACKER: &str = "learned_attacker";

/// The axis that looks for the agent whose malice hurts most.
const WORST_AGENT: &str = "worst_agent";

impl Axis {
    /// Reads `NAME=LEVEL,LEVEL,...`. NAME is one of
    /// - a perturbation (`observation_noise`), a physical constant (`dynamics.mass`), or an inline table with further settings
    ///   (`{ malicious_action = { count = 1 } }`);
    /// - `worst_agent`: random actions of the one agent, found per run and level, whose malice hurts most;
    /// - `attack_linf` or `attack_l2`: observations changed by projected gradient ascent on the policy;
    /// - `attack_value_linf` or `attack_value_l2`: observations that the policy's critic values least or, where action
    ///   values are learned, at which it does what has the least value;
    /// - `learned_attacker`: an agent turned by an attacker that was trained against the others, with this probability at each step.
    ///
    /// # Errors
    /// [`Failure::Usage`] naming what is wrong.
    pub fn parse(text: &str) -> Result<Self> {
        let usage = |message: String| Failure::usage(message, "write --axis NAME=LEVELS, as in --axis observation_noise=0.1,0.2,0.4");
        let Some((name, levels)) = text.rsplit_once('=') else {
            return Err(usage(format!("--axis {text} has no levels")));
        };
        let mut parsed = vec![0.0];
        for level in levels.split(',') {
            match level.trim().parse::<f64>() {
                Ok(level) if level.is_finite() => parsed.push(level),
                _ => return Err(usage(format!("`{}` in --axis {text} is not a number", level.trim()))),
            }
        }
        parsed.sort_by(f64::total_cmp);
        parsed.dedup();
        if parsed.len() < 2 {
            return Err(usage(format!("--axis {text} needs a level other than 0")));
        }
        let name = name.trim();
        let (label, hardship) = if name.starts_with('{') {
            let table = name.trim_start_matches('{').trim_start();
            if table.starts_with(LEARNED_ATTACKER) {
                let Table::LearnedAttacker(config) = inline("--axis", name)?;
                (label_of(LEARNED_ATTACKER, &Table::LearnedAttacker(config.clone()), &["probability"]), Hardship::LearnedAttacker(config))
            } else {
                let perturbation: PerturbationConfig = inline("--axis", name)?;
                let mut label = label_of(perturbation.name(), &perturbation, PerturbationConfig::LEVEL_FIELDS);
                if let PerturbationConfig::Dynamics(config) = &perturbation {
                    // As in the short form. A constant that is the default would not be named at all.
                    let settings = label_of("dynamics", &perturbation, &[PerturbationConfig::LEVEL_FIELDS, &["constant"]].concat());
                    label = settings.replacen("dynamics", &format!("dynamics.{}", config.constant), 1);
                }
                (label, Hardship::Perturbation(perturbation))
            }
        } else if let Some(constant) = name.strip_prefix("dynamics.") {
            let config = DynamicsConfig { constant: constant.to_string(), ..DynamicsConfig::default() };
            (name.to_string(), Hardship::Perturbation(PerturbationConfig::Dynamics(config)))
        } else if name == LEARNED_ATTACKER {
            (name.to_string(), Hardship::LearnedAttacker(LearnedAttackerConfig::default()))
        } else if name == WORST_AGENT {
            (name.to_string(), Hardship::Perturbation(PerturbationConfig::MaliciousAction(MaliciousActionConfig::default())))
        } else if let Some((_, target, norm)) = ATTACKS.iter().find(|(attack, ..)| *attack == name) {
            let config = ObservationAttackConfig { norm: *norm, ..ObservationAttackConfig::default() };
            let weakest = ObservationAttackConfig { radius: parsed[0], ..config.clone() };
            weakest.validate().map_err(|e| usage(format!("--axis {text}: {e}")))?;
            (name.to_string(), Hardship::Attack(*target, config))
        } else {
            let known: Vec<&str> = PerturbationConfig::LIST
                .iter()
                .map(|(name, _)| *name)
                .chain([WORST_AGENT, LEARNED_ATTACKER])
                .chain(ATTACKS.map(|(name, ..)| name))
                .collect();
            if !known.contains(&name) {
                return Err(Failure::usage(format!("there is no perturbation `{name}`"), suggest(name, &known)));
            }
            if name == "dynamics" {
                let help = "write --axis dynamics.mass=-0.5,0.5; a wrong name is answered with the world's constants";
                return Err(Failure::usage("--axis dynamics does not say which constant", help));
            }
            (name.to_string(), Hardship::Perturbation(inline("--axis", &format!("{{ {name} = {{}} }}"))?))
        };
        if matches!(hardship, Hardship::Perturbation(PerturbationConfig::RewardNoise(_))) {
            let help = "it is meant for training: `[[perturb]]` with `[perturb.reward_noise]`";
            return Err(Failure::usage("noise on rewards does not change what a trained policy does", help));
        }
        let variants = vec![(label.clone(), hardship.clone())];
        Ok(Self { label, hardship, levels: parsed, variants })
    }

    /// Fills in what depends on the world: the agents that are searched.
    pub fn in_world(mut self, spec: &EnvSpec) -> Self {
        if self.label == WORST_AGENT {
            let variant = |agent: &steadfast_envs::AgentSpec| {
                let config = MaliciousActionConfig { agents: vec![agent.name.clone()], ..MaliciousActionConfig::default() };
                (format!("{WORST_AGENT}:{}", agent.name), Hardship::Perturbation(PerturbationConfig::MaliciousAction(config)))
            };
            self.variants = spec.agents.iter().map(variant).collect();
        }
        self
    }

    /// What a report needs of it.
    pub fn scale(&self) -> Scale {
        Scale {
            label: self.label.clone(),
            levels: self.levels.clone(),
            variants: self.variants.iter().map(|(label, _)| label.clone()).collect(),
            quantity: quantity_of(&self.label),
            has_recovery: matches!(&self.hardship, Hardship::Perturbation(p) if p.schedule().recovery_start().is_some()),
        }
    }
}

impl Scale {
    /// An axis of which only the cells are known: their axis and levels other than 0, and whether recovery times were found.
    pub fn of_cells(label: &str, variants: Vec<String>, levels: impl IntoIterator<Item = f64>, has_recovery: bool) -> Self {
        let mut levels: Vec<f64> = levels.into_iter().chain([0.0]).collect();
        levels.sort_by(f64::total_cmp);
        levels.dedup();
        Self { label: label.to_string(), levels, variants, quantity: quantity_of(label), has_recovery }
    }
}

/// The label of the axis that a cell belongs to: its own, but for the variants of a search.
pub fn axis_of(cell: &str) -> &str {
    match cell.split_once(':') {
        Some((WORST_AGENT, _)) => WORST_AGENT,
        _ => cell,
    }
}

/// What the levels of an axis with this label are.
fn quantity_of(label: &str) -> String {
    let name = label.split('(').next().unwrap_or(label);
    if let Some(constant) = name.strip_prefix("dynamics.") {
        return format!("relative change of {}", constant.replace('_', " "));
    }
    match name {
        LEARNED_ATTACKER => "probability that an action of a turned agent is the attacker's",
        WORST_AGENT => "probability that an action of the agent that matters most is replaced",
        _ if ATTACKS.iter().any(|(attack, ..)| *attack == name) => "radius of the attack, in units of the features",
        _ => quantity(name),
    }
    .to_string()
}

/// A name with those settings that differ from their defaults, but for the strength.
fn label_of<T: Serialize + DeserializeOwned>(name: &str, own: &T, level_fields: &[&str]) -> String {
    let table = |p: &T| toml::Table::try_from(p).unwrap_or_default().remove(name);
    let default = inline::<T>("--axis", &format!("{{ {name} = {{}} }}"));
    let (Some(toml::Value::Table(own)), Ok(default)) = (table(own), default) else { return name.to_string() };
    let Some(toml::Value::Table(default)) = table(&default) else { return name.to_string() };
    let words: Vec<String> = own
        .iter()
        .filter(|(key, value)| !level_fields.contains(&key.as_str()) && default.get(*key) != Some(*value))
        .map(|(key, value)| format!("{key}={}", value.to_string().replace('"', "")))
        .collect();
    if words.is_empty() { name.to_string() } else { format!("{name}({})", words.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_read_in_three_forms() {
        let axis = Axis::parse("observation_noise=0.4,0.1").unwrap();
        assert_eq!((axis.label.as_str(), axis.levels.as_slice()), ("observation_noise", [0.0, 0.1, 0.4].as_slice()));
        let axis = Axis::parse("dynamics.damping=-0.5,0,0.5").unwrap();
        assert_eq!(axis.levels, [-0.5, 0.0, 0.5]);
        assert!(matches!(&axis.hardship, Hardship::Perturbation(PerturbationConfig::Dynamics(c)) if c.constant == "damping"));
        let axis = Axis::parse(r#"{ malicious_action = { count = 1, behaviour = "frozen" } }=0.5,1"#).unwrap();
        assert_eq!(axis.label, "malicious_action(behaviour=frozen; count=1)");
        let learned = Axis::parse("{ learned_attacker = { count = 2, steps = 1000 } }=0.5,1").unwrap();
        assert_eq!(learned.label, "learned_attacker(count=2; steps=1000)");
        assert!(matches!(&learned.hardship, Hardship::LearnedAttacker(c) if (c.count, c.steps, c.probability) == (2, 1000, 1.0)));
        assert_eq!(Axis::parse("learned_attacker=1").unwrap().label, "learned_attacker");
        assert_eq!(axis.levels, [0.0, 0.5, 1.0]);
    }

    #[test]
    fn a_search_tries_every_agent() {
        let spec = steadfast_envs::EnvConfig::SimpleSpread(Default::default()).build().unwrap().spec().clone();
        let axis = Axis::parse("worst_agent=0.5").unwrap().in_world(&spec);
        let labels: Vec<&str> = axis.variants.iter().map(|(label, _)| label.as_str()).collect();
        assert_eq!(labels, ["worst_agent:agent_0", "worst_agent:agent_1", "worst_agent:agent_2"]);
        let second = &axis.variants[1].1;
        assert!(matches!(second, Hardship::Perturbation(PerturbationConfig::MaliciousAction(c)) if c.agents == ["agent_1"]));
        assert_eq!(Axis::parse("observation_noise=1").unwrap().in_world(&spec).variants.len(), 1);
    }

    #[test]
    fn a_label_tells_what_the_levels_are() {
        for (axis, quantity) in [
            ("observation_delay=1", "age of observations (steps)"),
            ("dynamics.max_speed=1", "relative change of max speed"),
            ("{ dynamics = { constant = 'mass', schedule = { burst = { start = 5, length = 5 } } } }=1", "relative change of mass"),
            ("{ malicious_action = { count = 2 } }=1", "probability that an action is replaced"),
            ("attack_value_l2=1", "radius of the attack, in units of the features"),
            ("worst_agent=1", "probability that an action of the agent that matters most is replaced"),
            ("{ learned_attacker = { count = 2 } }=1", "probability that an action of a turned agent is the attacker's"),
        ] {
            let scale = Axis::parse(axis).unwrap().scale();
            assert_eq!(scale.quantity, quantity, "{axis}: {}", scale.label);
            let again = Scale::of_cells(&scale.label, scale.variants.clone(), [1.0], scale.has_recovery);
            assert_eq!(again, scale, "{axis}");
            assert_eq!(scale.has_recovery, axis.contains("burst"), "{axis}");
        }
        let inline = "{ dynamics = { constant = 'damping', schedule = { onset = { start = 5 } } } }=1";
        let labels = ["{ dynamics = { constant = 'mass' } }=1", "dynamics.mass=1", inline].map(|axis| Axis::parse(axis).unwrap().label);
        assert_eq!(labels, ["dynamics.mass", "dynamics.mass", "dynamics.damping(schedule={ onset = { start = 5 } })"]);
        assert_eq!(axis_of("worst_agent:agent_1"), "worst_agent");
        assert_eq!(axis_of("observation_noise(law=sign)"), "observation_noise(law=sign)");
    }

    #[test]
    fn wrong_axes_are_refused_with_a_reason() {
        for (text, word) in [
            ("observation_noise", "no levels"),
            ("observation_noise=a", "`a`"),
            ("observation_noise=0", "other than 0"),
            ("observation_noize=1", "`observation_noise`"),
            ("dynamics=1", "which constant"),
            ("attack_linf=-1", "`radius`"),
            ("attack_value_l2=-1", "`radius`"),
            ("reward_noise=1", "training"),
            ("{ observation_noise = { lav = 1 } }=1", "lav"),
            ("{ learned_attacker = { step = 1 } }=1", "step"),
        ] {
            let message = Axis::parse(text).unwrap_err().render(false, 200);
            assert!(message.contains(word), "{text}: {message}");
        }
    }
}
