//! `steadfast audit`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;

#[cfg(feature = "llm")]
use steadfast_agents::llm::{Device, EncodeConfig, Encoder};
#[cfg(feature = "llm")]
use steadfast_envs::SeedTree;
#[cfg(feature = "llm")]
use steadfast_reward::audit::TokenEncoder;
use steadfast_reward::audit::{Audit, AuditConfig, audit_segments, audit_texts};
use steadfast_reward::dataset::{Kind, PreferenceFile, ReadOptions, Row};
use steadfast_reward::model::{HashedTextConfig, HashedTextReward, MlpRewardConfig};
#[cfg(feature = "llm")]
use steadfast_reward::model::{TransformerReward, TransformerRewardConfig};
use steadfast_reward::{LossConfig, R3mConfig, RewardError, Segment, Text};
use tracing::{info, warn};

use super::print;
use crate::cli::AuditArgs;
use crate::config::load::inline;
#[cfg(feature = "llm")]
use crate::experiment::language::model::LanguageModel;
use crate::failure::{Failure, Result};
use crate::run::audit::{Summary, create, write};
use crate::terminal::PassLine;

/// Suspects that are shown.
const SHOWN: usize = 10;
/// Characters that are shown of a text.
const EXCERPT: usize = 60;

/// Ranks the pairs of a file.
pub fn run(arguments: &AuditArgs) -> Result<()> {
    let loss = loss(arguments)?;
    let options = ReadOptions { skip_bad_rows: arguments.skip_bad_rows, ..Default::default() };
    let file = PreferenceFile::open(&arguments.file, &options).map_err(|e| failed(e, &arguments.file))?;
    let defaults = match file.kind() {
        #[cfg(feature = "llm")]
        Kind::Texts if arguments.model.is_some() => AuditConfig::tokens(),
        Kind::Texts => AuditConfig::texts(),
        Kind::Segments => AuditConfig::segments(),
        Kind::Completions | Kind::Prompts => {
            return Err(Failure::usage(format!("{} has no pairs", arguments.file.display()), "give a file with `chosen` and `rejected`"));
        }
    };
    let judge_of = Judge::of(arguments, &file)?;
    let config = AuditConfig {
        folds: usize::from(arguments.folds),
        epochs: arguments.epochs.map_or(defaults.epochs, |n| n as usize),
        loss,
        seed: arguments.seed,
        ..defaults
    };
    let directory = create(&arguments.file, arguments.output.as_deref(), arguments.force)?;
    info!(file = %file.path().display(), kind = %file.kind(), loss = loss.name(), folds = config.folds, "auditing");
    let threads = arguments.threads.map_or(0, usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| Failure::caused("cannot start the threads", e))?;
    let audit = pool.install(|| judge(&config, &file, &judge_of)).map_err(|e| {
        // Made above and still empty, unless it was there before.
        let _ = std::fs::remove_dir(&directory);
        failed(e, &arguments.file)
    })?;

    audit.report.warnings().iter().for_each(|warning| warn!("{warning}"));
    let summary = Summary::new(&file, &config, &audit);
    if !summary.is_informative {
        warn!(
            "the ranking means nothing: the models agree with {:.1} % of the labels, which coin tosses do as well (chance {:.2})",
            100.0 * summary.accuracy,
            summary.chance
        );
    }
    let ranking = audit.ranking();
    let written = write(&directory, &audit, &ranking, &summary)?;
    let mut answer = overview(&config, &audit, &summary);
    answer.push_str(&suspects(&file, &audit, &ranking).map_err(|e| failed(e, &arguments.file))?);
    written.iter().for_each(|path| {
        let _ = writeln!(answer, "{}", path.display());
    });
    print(&answer)
}

/// Who judges texts.
enum Judge {
    /// A model of words, marks and length.
    Words,
    /// Transformers that start from a language model.
    #[cfg(feature = "llm")]
    Transformer(Box<LanguageModel>, EncodeConfig),
}

impl Judge {
    #[cfg(feature = "llm")]
    fn of(arguments: &AuditArgs, file: &PreferenceFile) -> Result<Self> {
        let Some(path) = &arguments.model else { return Ok(Self::Words) };
        if file.kind() != Kind::Texts {
            return Err(Failure::usage("--model judges texts, but the file compares segments", "leave --model away"));
        }
        let model = LanguageModel::load(path, &Device::Cpu)?;
        let most = model.decoder.config().max_positions;
        let max_tokens = arguments.max_tokens.map_or(most, |n| n as usize);
        if max_tokens > most {
            return Err(Failure::usage(
                format!("--max-tokens is {max_tokens}, but the model has {most} positions"),
                "give at most that many",
            ));
        }
        Ok(Self::Transformer(Box::new(model), EncodeConfig { max_tokens, ..EncodeConfig::default() }))
    }

    #[cfg(not(feature = "llm"))]
    fn of(_arguments: &AuditArgs, _file: &PreferenceFile) -> Result<Self> {
        Ok(Self::Words)
    }
}

/// Runs the audit with the model for the kind of the pairs.
fn judge(config: &AuditConfig, file: &PreferenceFile, judge: &Judge) -> Result<Audit, RewardError> {
    // The passes of `filtered` come twice.
    let rounds = if matches!(config.loss, LossConfig::Filtered(_)) { 2 } else { 1 };
    match file.kind() {
        Kind::Texts => {
            let model = HashedTextConfig::default();
            let mut line = PassLine::new(rounds * (config.epochs + 1), "pairs");
            let mut passes = 0;
            let mut last = 0;
            let mut show = |pass: usize, rows: u64| {
                passes += usize::from(pass != last);
                last = pass;
                line.show(passes, rows);
            };
            let audit = match judge {
                Judge::Words => audit_texts(config, file, &model.features()?, &mut |_| HashedTextReward::new(&model), &mut show),
                #[cfg(feature = "llm")]
                Judge::Transformer(model, encode) => {
                    let encoder = TokenEncoder::new(Encoder::new(&model.tokenizer, encode)?, model.decoder.config());
                    let settings = TransformerRewardConfig::default();
                    let mut build = |seed| TransformerReward::new(&model.decoder, &settings, SeedTree::new(seed));
                    let audit = audit_texts(config, file, &encoder, &mut build, &mut show);
                    let share = encoder.truncated_share();
                    if share > 0.0 {
                        warn!("{:.1} % of the texts lost their end at {} tokens", 100.0 * share, encode.max_tokens);
                    }
                    audit
                }
            };
            line.finish();
            audit
        }
        Kind::Segments => {
            let fits = rounds * config.folds * config.epochs;
            let line = Mutex::new(PassLine::new(1, &format!("of {fits} passes over segments")));
            let show = |done: usize| {
                if let Ok(mut line) = line.lock() {
                    line.show(1, done as u64);
                }
            };
            audit_segments(config, &MlpRewardConfig::default(), file, &show)
        }
        Kind::Completions | Kind::Prompts => unreachable!("only files of pairs are audited"),
    }
}

/// The loss that was asked for.
fn loss(arguments: &AuditArgs) -> Result<LossConfig> {
    let text = arguments.loss.trim();
    let is_table = text.starts_with('{');
    let mut loss: LossConfig = if is_table {
        inline("--loss", text)?
    } else if LossConfig::LIST.iter().any(|(name, _)| *name == text) {
        inline("--loss", &format!("{{ {text} = {{}} }}"))?
    } else {
        let names: Vec<&str> = LossConfig::LIST.iter().map(|(name, _)| *name).collect();
        return Err(Failure::usage(format!("there is no loss `{text}`"), crate::config::report::suggest(text, &names)));
    };
    match (arguments.lambda, &mut loss) {
        (None, _) => {}
        (Some(lambda), LossConfig::R3m(config)) if !is_table => *config = R3mConfig { lambda },
        (Some(_), LossConfig::R3m(_)) => {
            return Err(Failure::usage("both --lambda and the table of --loss set lambda", "give one of them"));
        }
        (Some(_), other) => {
            return Err(Failure::usage(format!("--lambda belongs to the loss r3m, not to {}", other.name()), "leave --lambda away"));
        }
    }
    loss.build().map_err(|e| Failure::usage(e.to_string(), "`steadfast config defaults` shows the settings of all losses"))?;
    Ok(loss)
}

/// What the shell and the user are told: a file that is not what it should be is a wrong argument; a file that has a bad
/// row, or cannot be read to its end, is a failed run.
fn failed(error: RewardError, path: &std::path::Path) -> Failure {
    match &error {
        RewardError::Row { .. } => Failure::run_with_help(error.to_string(), "mend the row, or leave out such rows with --skip-bad-rows"),
        RewardError::Config { field, got, .. } if field == "pairs" => Failure::usage(
            format!("an audit learns from some labels to judge others, but {} has {got}", path.display()),
            "give a file with 2 labelled pairs at least; some hundreds are needed to find anything",
        ),
        RewardError::Config { .. } => Failure::usage(error.to_string(), "see `steadfast audit --help`"),
        RewardError::File { .. } | RewardError::Content { .. } => {
            Failure::usage(error.to_string(), "see `steadfast audit --help` for what a preference file holds")
        }
        _ => Failure::run(error.to_string()),
    }
}

/// What came of the audit, in a few lines.
fn overview(config: &AuditConfig, audit: &Audit, summary: &Summary<'_>) -> String {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let how = if config.folds == 1 { "models that have seen them".to_string() } else { format!("models of {} folds", config.folds) };
    let outliers = match config.loss {
        LossConfig::R3m(_) => format!(", {} are outliers (δ > 0)", percent(summary.outlier_fraction)),
        _ => String::new(),
    };
    let mut text = format!(
        "{} labelled pairs; {how} agree with {} of the labels (pass {} of {}){outliers}\n",
        summary.labelled,
        percent(summary.accuracy),
        audit.selected_pass,
        audit.passes.len(),
    );
    if !summary.is_informative {
        text.push_str("no better than coin tosses: the ranking means nothing\n");
    }
    if let Some(found) = audit.detection {
        let _ = write!(
            text,
            "{} of the labels are wrong; finding them: AUROC {:.3}, average precision {:.3}",
            percent(found.rate),
            found.auroc,
            found.average_precision
        );
        if let Some(precision) = found.precision {
            let _ = write!(text, "; {} of the outliers are wrong, {} of the wrong are outliers", percent(precision), percent(found.recall));
        }
        text.push('\n');
    }
    text
}

/// The most suspicious pairs with the beginnings of what they compare.
fn suspects(file: &PreferenceFile, audit: &Audit, ranking: &[usize]) -> Result<String, RewardError> {
    let shown = &ranking[..ranking.len().min(SHOWN)];
    let mut excerpts: BTreeMap<u64, [String; 2]> = shown.iter().map(|&row| (audit.pairs[row].line, Default::default())).collect();
    let mut missing = excerpts.len();
    for row in file.rows()? {
        let (line, row) = row?;
        if let Some(excerpt) = excerpts.get_mut(&line) {
            *excerpt = match &row {
                Row::Texts(p) => [&p.pair.chosen, &p.pair.rejected].map(excerpt_of),
                Row::Segments(p) => [&p.pair.chosen, &p.pair.rejected].map(describe),
                // Files are opened as files of pairs.
                Row::Completion(_) | Row::Prompt(_) => continue,
            };
            missing -= 1;
            if missing == 0 {
                break;
            }
        }
    }
    let mut text = format!("\n{:>4}  {:>8}  {:>8}  pair\n", "rank", "margin", "outlier");
    for (i, &row) in shown.iter().enumerate() {
        let pair = &audit.pairs[row];
        let [chosen, rejected] = excerpts.remove(&pair.line).unwrap_or_default();
        let _ = writeln!(
            text,
            "{:>4}  {:>8.3}  {:>8.3}  {} (line {})",
            i + 1,
            pair.margin,
            pair.outlier,
            visible(&pair.id, EXCERPT),
            pair.line
        );
        let _ = writeln!(text, "{:26}chosen    {chosen}\n{:26}rejected  {rejected}", "", "");
    }
    text.push('\n');
    Ok(text)
}

fn excerpt_of(text: &Text) -> String {
    match text {
        Text::Plain(text) => visible(text, EXCERPT),
        Text::Conversation(messages) => visible(&messages.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join(" "), EXCERPT),
    }
}

fn describe(segment: &Segment) -> String {
    let mut text = format!("{} steps", segment.steps);
    if !segment.policy.is_empty() {
        let _ = write!(text, " of policy `{}`", visible(&segment.policy, EXCERPT));
    }
    if let Some(value) = segment.true_return() {
        let _ = write!(text, ", return {value:.3}");
    }
    text
}

/// The beginning of a text on one line, without what a terminal would obey.
fn visible(text: &str, most: usize) -> String {
    let words = text.split_whitespace().enumerate();
    let mut characters = words.flat_map(|(i, word)| (i > 0).then_some(' ').into_iter().chain(word.chars())).filter(|c| !c.is_control());
    let line: String = characters.by_ref().take(most).collect();
    if characters.next().is_some() { format!("{}…", line.trim_end()) } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_fit_on_a_line() {
        assert_eq!(visible("one\n\n two\tthree ", 60), "one two three");
        assert_eq!(visible("\u{1b}[31mred\u{7}", 60), "[31mred");
        assert_eq!(visible("äöü äöü", 4), "äöü…");
        assert_eq!(visible("exact", 5), "exact");
        assert_eq!(visible("", 5), "");
    }
}
