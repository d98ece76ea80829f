//! Greedy generation on one core, for the sizes S and M: a prompt of 64 tokens and 128 new ones per row, prefill included.
//! Peers measure the same in `benches/peers/llm_generate.py`.
//!
//! `RAYON_NUM_THREADS=1 taskset -c 1 cargo bench -p steadfast -p steadfast-agents --bench llm_generate`: new tokens per second
//! over the whole call, median of 5. `-- --json` prints one line for each figure; `-- --size S` leaves the other size out, `-- --rows 16` the other number of rows.
//! `llm_prefill` reads 16 prompts of 64 tokens and draws one token each: prompt tokens per second. `-- --device cuda` (with
//! `--features cuda`) measures on the first GPU, in `bf16`.
#![allow(clippy::print_stdout, missing_docs)]

#[cfg(feature = "llm")]
mod bench {
    use std::time::Instant;

    use candle_core::Device;
    use steadfast_agents::llm::model::{Decoder, DecoderConfig};
    use steadfast_agents::llm::{GenerationConfig, Generator};
    use steadfast_envs::{Rng, SeedTree};

    const PROMPT: usize = 64;
    const NEW: usize = 128;

    /// Median seconds of a call.
    fn seconds(generator: &mut Generator, rows: usize, new: usize, vocab: usize) -> f64 {
        let mut rng = SeedTree::new(7).rng();
        let prompts: Vec<Vec<u32>> = (0..rows).map(|_| (0..PROMPT).map(|_| rng.below(vocab) as u32).collect()).collect();
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let config = GenerationConfig { max_new_tokens: new, greedy: true, ..GenerationConfig::default() };
        let mut rngs: Vec<Rng> = (0..rows as u64).map(Rng::from_seed).collect();
        let mut times: Vec<f64> = (0..6)
            .map(|_| {
                let start = Instant::now();
                let done = generator.generate(&prompts, &config, &[], &[], &mut rngs).expect("the settings fit");
                assert!(done.iter().all(|completion| completion.tokens.len() == new));
                start.elapsed().as_secs_f64()
            })
            .skip(1)
            .collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }

    pub fn main() {
        let arguments: Vec<String> = std::env::args().collect();
        let is_json = arguments.iter().any(|a| a == "--json");
        let only = arguments.iter().position(|a| a == "--size").and_then(|i| arguments.get(i + 1));
        let only_rows = arguments.iter().position(|a| a == "--rows").and_then(|i| arguments.get(i + 1)?.parse().ok());
        let is_cuda = arguments.windows(2).any(|pair| pair == ["--device", "cuda"]);
        let device = if is_cuda { Device::new_cuda(0).expect("there is a GPU, and `--features cuda`") } else { Device::Cpu };
        let report = |case: &str, value: f64| {
            if is_json {
                println!("{{\"peer\": \"steadfast\", \"case\": \"{case}\", \"value\": {value:.1}, \"unit\": \"tokens/s\"}}");
            } else {
                println!("{case:32} {value:9.0} tokens/s");
            }
        };
        for (size, config) in
            [("S", DecoderConfig::llama(4096, 256, 4, 4, 688, 256)), ("M", DecoderConfig::llama(8192, 512, 8, 8, 1376, 256))]
        {
            if only.is_some_and(|only| only != size) {
                continue;
            }
            let decoder = Decoder::fresh(&config, false, SeedTree::new(0), &device).expect("memory suffices");
            let mut generator = Generator::new(&decoder).expect("memory suffices");
            for rows in [1, 16] {
                if only_rows.is_some_and(|only: usize| only != rows) {
                    continue;
                }
                let took = seconds(&mut generator, rows, NEW, config.vocab_size);
                report(&format!("llm_generate_{size}_b{rows}"), (rows * NEW) as f64 / took);
            }
            if only_rows.is_some() {
                continue;
            }
            let took = seconds(&mut generator, 16, 1, config.vocab_size);
            report(&format!("llm_prefill_{size}"), (16 * PROMPT) as f64 / took);
        }
    }
}

fn main() {
    #[cfg(feature = "llm")]
    bench::main();
}
