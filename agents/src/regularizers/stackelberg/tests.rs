//! The recursion in double precision against brute force: central differences of the whole ascent in every weight.

use steadfast_envs::Rng;

use super::super::ball::{ascend, project};
use super::*;

const INPUT: usize = 5;
const HIDDEN: usize = 16;
const OUTPUT: usize = 3;
const WEIGHTS: usize = (INPUT + 1) * HIDDEN + (HIDDEN + 1) * OUTPUT;

/// `f(x) = B tanh(A x + a) + b` and the squared distance of its outputs at `x + δ` and `x`, for one sample.
struct Game {
    input: Vec<f64>,
    weights: Vec<f64>,
    gradient: Vec<f64>,
}

impl Game {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::from_seed(seed);
        let mut normal = |n: usize, scale: f64| (0..n).map(|_| scale * f64::from(rng.normal_f32())).collect::<Vec<_>>();
        let input = normal(INPUT, 1.0);
        let weights = [
            normal(INPUT * HIDDEN, (INPUT as f64).sqrt().recip()),
            normal(HIDDEN, 0.1),
            normal(HIDDEN * OUTPUT, (HIDDEN as f64).sqrt().recip()),
            normal(OUTPUT, 0.1),
        ];
        Self { input, weights: weights.concat(), gradient: vec![0.0; WEIGHTS] }
    }

    fn hidden(&self, x: &[f64]) -> Vec<f64> {
        let bias = &self.weights[INPUT * HIDDEN..];
        (0..HIDDEN).map(|h| (bias[h] + (0..INPUT).map(|i| x[i] * self.weights[i * HIDDEN + h]).sum::<f64>()).tanh()).collect()
    }

    fn second(&self) -> &[f64] {
        &self.weights[(INPUT + 1) * HIDDEN..]
    }

    fn outputs(&self, hidden: &[f64]) -> Vec<f64> {
        let second = self.second();
        (0..OUTPUT).map(|o| second[HIDDEN * OUTPUT + o] + (0..HIDDEN).map(|h| hidden[h] * second[h * OUTPUT + o]).sum::<f64>()).collect()
    }

    fn moved(&self, offset: &[f64]) -> Vec<f64> {
        self.input.iter().zip(offset).map(|(x, d)| x + d).collect()
    }

    fn distance(&self, offset: &[f64]) -> f64 {
        let (a, b) = (self.outputs(&self.hidden(&self.moved(offset))), self.outputs(&self.hidden(&self.input)));
        a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum()
    }

    /// Adds `weight · ∂D/∂θ` to `gradient`; returns `weight · ∂D/∂δ`.
    fn backward(&mut self, offset: &[f64], weight: f64) -> Vec<f64> {
        let (moved, input) = (self.moved(offset), self.input.clone());
        let (above, below) = (self.hidden(&moved), self.hidden(&input));
        let (a, b) = (self.outputs(&above), self.outputs(&below));
        let mut slope = vec![0.0; INPUT];
        for (x, hidden, sign, is_moved) in [(&moved, &above, 1.0, true), (&input, &below, -1.0, false)] {
            let d_output: Vec<f64> = (0..OUTPUT).map(|o| sign * 2.0 * weight * (a[o] - b[o])).collect();
            let second = self.second().to_vec();
            let start = (INPUT + 1) * HIDDEN;
            for o in 0..OUTPUT {
                self.gradient[start + HIDDEN * OUTPUT + o] += d_output[o];
            }
            for h in 0..HIDDEN {
                let mut d_hidden = 0.0;
                for o in 0..OUTPUT {
                    self.gradient[start + h * OUTPUT + o] += hidden[h] * d_output[o];
                    d_hidden += second[h * OUTPUT + o] * d_output[o];
                }
                let d = d_hidden * (1.0 - hidden[h] * hidden[h]);
                self.gradient[INPUT * HIDDEN + h] += d;
                for i in 0..INPUT {
                    self.gradient[i * HIDDEN + h] += x[i] * d;
                    if is_moved {
                        slope[i] += self.weights[i * HIDDEN + h] * d;
                    }
                }
            }
        }
        slope
    }
}

impl Distances<f64> for Game {
    fn products(&mut self, _: usize, offsets: &[f64], along: &[f64], curvature: Option<&mut [f64]>) {
        // Central differences of the gradients, which both terms have in common.
        let size = norm(along);
        if size == 0.0 {
            curvature.into_iter().for_each(|c| c.fill(0.0));
            return;
        }
        let h = 1e-5;
        let at = |sign: f64| offsets.iter().zip(along).map(|(o, a)| o + sign * h * a / size).collect::<Vec<_>>();
        let weight = size / (2.0 * h);
        let (above, below) = (self.backward(&at(1.0), weight), self.backward(&at(-1.0), -weight));
        if let Some(curvature) = curvature {
            curvature.iter_mut().zip(above.iter().zip(&below)).for_each(|(c, (a, b))| *c = a + b);
        }
    }
}

/// The ascent from a fixed start, and its steps.
fn attack(game: &mut Game, ascent: &Ascent<f64>, steps: usize) -> (Vec<f64>, Vec<Step<f64>>) {
    let mut rng = Rng::from_seed(77);
    let mut offset: Vec<f64> = (0..INPUT).map(|_| 0.01 * f64::from(rng.normal_f32())).collect();
    let mut path = Vec::new();
    for _ in 0..steps {
        let slope = game.backward(&offset, 1.0);
        let from = offset.clone();
        ascend(&mut offset, &slope, ascent.direction, ascent.step_size);
        path.push(Step { offset: from, slope, target: offset.clone() });
        project(&mut offset, ascent.norm, ascent.radius);
    }
    (offset, path)
}

struct Measured {
    /// Relative error of the total derivative against brute force.
    error: f64,
    /// Relative size of what the partial derivative misses.
    missed: f64,
}

fn norm(v: &[f64]) -> f64 {
    v.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn minus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn measure(ascent: &Ascent<f64>, steps: usize) -> Measured {
    let mut game = Game::new(4);
    let (offset, path) = attack(&mut game, ascent, steps);
    game.gradient.fill(0.0);
    let mut v = game.backward(&offset, 1.0);
    let partial = game.gradient.clone();
    interaction(&path, ascent, INPUT, &mut v, &mut game, &mut Room::default());
    let total = game.gradient.clone();
    let brute: Vec<f64> = (0..WEIGHTS)
        .map(|i| {
            let mut at = |h: f64| {
                let kept = game.weights[i];
                game.weights[i] = kept + h;
                let offset = attack(&mut game, ascent, steps).0;
                let value = game.distance(&offset);
                game.weights[i] = kept;
                value
            };
            (at(1e-5) - at(-1e-5)) / 2e-5
        })
        .collect();
    let size = norm(&brute);
    Measured { error: norm(&minus(&total, &brute)) / size, missed: norm(&minus(&partial, &brute)) / size }
}

fn raw(step_size: f64, steps: usize) -> Measured {
    measure(&Ascent { norm: Norm::L2, radius: f64::INFINITY, direction: Direction::Raw, step_size }, steps)
}

fn in_ball(norm: Norm, direction: Direction, step_size: f64, steps: usize) -> Measured {
    measure(&Ascent { norm, radius: 0.05, direction, step_size }, steps)
}

#[test]
fn total_derivative_matches_brute_force() {
    for step_size in [0.05, 0.2] {
        for steps in [1, 3, 5] {
            let found = raw(step_size, steps);
            assert!(found.error < 1e-5, "raw {step_size} {steps}: {}", found.error);
        }
    }
    // Inside the ball, on its boundary after one step, and several steps along the boundary.
    for (step_size, steps) in [(0.02, 1), (0.05, 1), (0.05, 3), (0.1, 3), (0.05, 10)] {
        for norm in [Norm::L2, Norm::Linf] {
            let found = in_ball(norm, Direction::Normalized, step_size, steps);
            assert!(found.error < 1e-5, "{norm:?} {step_size} {steps}: {}", found.error);
        }
    }
}

#[test]
fn free_attacks_hide_more_of_the_gradient_the_longer_they_are() {
    let missed: Vec<f64> = [(0.05, 1), (0.05, 3), (0.2, 3), (0.2, 5)].map(|(eta, k)| raw(eta, k).missed).to_vec();
    assert!(missed.windows(2).all(|w| w[0] < w[1]), "{missed:?}");
    assert!(missed[0] > 0.02 && missed[3] > 0.3, "{missed:?}");
}

#[test]
fn attacks_that_converge_in_the_ball_hide_nothing() {
    // At a maximiser the derivative of the maximum is the partial one.
    let missed: Vec<f64> = [1, 3, 10, 60].map(|k| in_ball(Norm::L2, Direction::Normalized, 0.05, k).missed).to_vec();
    assert!(missed[0] > 0.1, "{missed:?}");
    assert!(missed.windows(2).all(|w| w[1] < w[0]) && missed[3] < 1e-5, "{missed:?}");
}

#[test]
fn one_raw_step_on_a_linear_map_has_its_closed_form() {
    // f(x) = w x: δ₁ = (1 + 2 η w²) δ₀ and D = w² δ₁².
    struct Line {
        w: f64,
        gradient: f64,
    }
    impl Distances<f64> for Line {
        fn products(&mut self, _: usize, offsets: &[f64], along: &[f64], curvature: Option<&mut [f64]>) {
            // ∂D/∂δ = 2 w² δ
            self.gradient += along[0] * 4.0 * self.w * offsets[0];
            assert!(curvature.is_none(), "nothing is before the first step");
        }
    }
    let (w, eta, start) = (1.3, 0.2, 0.01);
    let mut line = Line { w, gradient: 0.0 };
    let slope = 2.0 * w * w * start;
    let end = start + eta * slope;
    let path = [Step { offset: vec![start], slope: vec![slope], target: vec![end] }];
    // The partial derivatives at the end.
    line.gradient = 2.0 * w * end * end;
    let mut v = [2.0 * w * w * end];
    let ascent = Ascent { norm: Norm::L2, radius: f64::INFINITY, direction: Direction::Raw, step_size: eta };
    interaction(&path, &ascent, 1, &mut v, &mut line, &mut Room::default());
    let growth = 1.0 + 2.0 * eta * w * w;
    let expected = start * start * (2.0 * w * growth * growth + w * w * 2.0 * growth * 4.0 * eta * w);
    assert!((line.gradient / expected - 1.0).abs() < 1e-10, "{} {expected}", line.gradient);
}

#[test]
fn steps_along_signs_add_nothing() {
    let ascent = Ascent { norm: Norm::Linf, radius: 0.05, direction: Direction::Sign, step_size: 0.05 };
    let mut game = Game::new(4);
    let (offset, path) = attack(&mut game, &ascent, 2);
    game.gradient.fill(0.0);
    let mut v = game.backward(&offset, 1.0);
    let partial = game.gradient.clone();
    interaction(&path, &ascent, INPUT, &mut v, &mut game, &mut Room::default());
    assert_eq!(game.gradient, partial);
}
