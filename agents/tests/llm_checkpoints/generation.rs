//! Generation from packed weights against what `transformers` generated.

use candle_core::Device;
use steadfast_agents::llm::generate::{GenerationConfig, Generator};
use steadfast_agents::llm::model::Decoder;
use steadfast_envs::SeedTree;

use super::{CAUSAL, expected, folder};

#[test]
fn greedy_tokens_agree_with_transformers_alone_and_in_a_batch() {
    for name in CAUSAL {
        let decoder = Decoder::load(&folder(name), &Device::Cpu).expect("the checkpoint loads");
        let expected = expected(name);
        let mut generator = Generator::new(&decoder).expect("the weights are packed");
        let config = GenerationConfig { max_new_tokens: expected.generated[0].len(), greedy: true, ..GenerationConfig::default() };
        let mut generate = |prompts: &[&[u32]]| -> Vec<Vec<u32>> {
            let mut rngs: Vec<_> = prompts.iter().map(|_| SeedTree::new(0).rng()).collect();
            let completions = generator.generate(prompts, &config, &[], &[], &mut rngs).expect("the prompts fit");
            completions.into_iter().map(|completion| completion.tokens).collect()
        };
        let prompts: Vec<&[u32]> = expected.sequences.iter().map(Vec::as_slice).collect();
        for (prompt, expected) in prompts.iter().zip(&expected.generated) {
            assert_eq!(&generate(&[prompt])[0], expected, "{name} alone");
        }
        assert_eq!(generate(&prompts), expected.generated, "{name} in a batch");
    }
}
