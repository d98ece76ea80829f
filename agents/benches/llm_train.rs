//! One step of DPO on one core, for the sizes S and M: fused operations against candle's own in one run.
//!
//! A step takes 8 pairs, thus 16 sequences of 128 tokens of which the last 64 are the completion: forward and backward of
//! the policy, a forward of the reference model, one step of AdamW. `_cached` leaves the reference out. Peers measure the
//! same in `benches/peers/llm_dpo.py`.
//!
//! `RAYON_NUM_THREADS=1 taskset -c 1 cargo bench -p steadfast -p steadfast-agents --bench llm_train`: seconds per step, median
//! of 7 (S) or 3 (M).
//! `-- --json` prints one line for each figure; `-- --size S` leaves the other size out. `-- --device cuda` (with `--features
//! cuda`) measures on the first GPU, where all operations are candle's: weights in `bf16` beside `f32` masters.
#![allow(clippy::print_stdout, missing_docs)]

#[cfg(feature = "llm")]
mod bench {
    use std::time::Instant;

    use candle_core::Device;
    use steadfast_agents::llm::model::{Decoder, DecoderConfig};
    use steadfast_agents::llm::{AdamW, AdamWConfig, TokenSequence, TokenStatistics};
    use steadfast_envs::SeedTree;

    const PAIRS: usize = 8;
    const LENGTH: usize = 128;
    const COMPLETION: usize = 64;
    const BETA: f32 = 0.1;

    fn log_prob(statistics: &TokenStatistics) -> f32 {
        statistics.log_prob()
    }

    fn step(decoder: &mut Decoder, optimizer: &mut AdamW, pairs: &[Vec<&TokenSequence>], reference: &[f32]) {
        let mut loss = |pair: usize, s: &[TokenStatistics], slopes: &mut [Vec<f32>]| {
            let margin = BETA * (log_prob(&s[0]) - reference[2 * pair] - log_prob(&s[1]) + reference[2 * pair + 1]);
            let slope = -BETA / (1.0 + margin.exp()) / PAIRS as f32;
            slopes[0].fill(slope);
            slopes[1].fill(-slope);
            Ok(())
        };
        decoder.accumulate_log_probs(pairs, 1.0, &mut loss).expect("the sequences fit");
        optimizer.step(decoder, 1e-5).expect("gradients are finite");
    }

    pub fn main() {
        let arguments: Vec<String> = std::env::args().collect();
        let as_json = arguments.iter().any(|a| a == "--json");
        // `cargo test` and clippy's dry run build benches and may run them without `--bench`.
        let is_full = arguments.iter().any(|a| a == "--bench");
        let only = arguments.iter().position(|a| a == "--size").and_then(|i| arguments.get(i + 1)).cloned();
        let is_cuda = arguments.windows(2).any(|pair| pair == ["--device", "cuda"]);
        let device = if is_cuda { Device::new_cuda(0).expect("there is a GPU, and `--features cuda`") } else { Device::Cpu };
        let sizes = [("S", DecoderConfig::llama(4096, 256, 4, 4, 688, 256), 7), ("M", DecoderConfig::llama(8192, 512, 8, 8, 1376, 256), 3)];
        for (size, config, repeats) in sizes {
            if only.as_deref().is_some_and(|only| only != size) || (!is_full && size == "M") {
                continue;
            }
            let repeats = if is_full { repeats } else { 1 };
            let mut rng = SeedTree::new(1).rng();
            let mut sequence = || TokenSequence {
                tokens: (0..LENGTH).map(|_| rng.below(config.vocab_size) as u32).collect(),
                prompt_len: LENGTH - COMPLETION,
            };
            let sequences: Vec<TokenSequence> = (0..2 * PAIRS).map(|_| sequence()).collect();
            let all: Vec<&TokenSequence> = sequences.iter().collect();
            let pairs: Vec<Vec<&TokenSequence>> = sequences.chunks(2).map(|pair| pair.iter().collect()).collect();
            for &is_plain in if device.is_cpu() { &[false, true][..] } else { &[true] } {
                let mut decoder = Decoder::fresh(&config, false, SeedTree::new(2), &device).expect("the device holds the model");
                let mut reference = decoder.duplicate().expect("the device holds a copy");
                decoder.use_plain_operations(is_plain);
                reference.use_plain_operations(is_plain);
                let mut optimizer = AdamW::new(&AdamWConfig::default(), &decoder).expect("the settings are valid");
                let mut seconds = [Vec::new(), Vec::new()];
                for repeat in 0..=repeats {
                    let begin = Instant::now();
                    let known: Vec<f32> = reference.log_probs(&all, 1.0).expect("the sequences fit").iter().map(log_prob).collect();
                    let middle = Instant::now();
                    step(&mut decoder, &mut optimizer, &pairs, &known);
                    device.synchronize().expect("the device answers");
                    // The first step warms up.
                    if repeat > 0 || !is_full {
                        seconds[0].push(begin.elapsed().as_secs_f64());
                        seconds[1].push(middle.elapsed().as_secs_f64());
                    }
                }
                for (name, mut seconds) in ["llm_dpo", "llm_dpo_cached"].into_iter().zip(seconds) {
                    seconds.sort_by(f64::total_cmp);
                    let (median, tool) = (seconds[seconds.len() / 2], if is_plain && device.is_cpu() { "candle" } else { "steadfast" });
                    if as_json {
                        println!("{{\"peer\": \"{tool}\", \"case\": \"{name}_{size}\", \"value\": {median}, \"unit\": \"s\"}}");
                    } else {
                        println!("{name}_{size:<2} {tool:<10} {median:8.3} s, fastest {:8.3} s", seconds[0]);
                    }
                }
            }
        }
    }
}

fn main() {
    #[cfg(feature = "llm")]
    bench::main();
}
