"""Stable-Baselines3 PPO on CartPole-v1 with its default hyper-parameters: steps per second.

Each repetition builds a fresh agent, collects and learns from one rollout to warm up, and is then
timed over `learn(16384)`. Environments step in one process (`DummyVecEnv`); the device is the CPU.
"""

import measure

ENV_ID = "CartPole-v1"
TIMED_STEPS = 16_384


def run(n_envs, repetitions):
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv

    torch.set_num_threads(1)
    timed = []
    for seed in range(repetitions):
        env = make_vec_env(ENV_ID, n_envs=n_envs, seed=seed, vec_env_cls=DummyVecEnv)
        agent = PPO("MlpPolicy", env, seed=seed, device="cpu", verbose=0)
        agent.learn(agent.n_steps * n_envs)
        start = agent.num_timesteps
        timed.append(
            measure.seconds(lambda: agent.learn(TIMED_STEPS, reset_num_timesteps=False))
        )
        made = agent.num_timesteps - start
        if made != TIMED_STEPS:
            raise RuntimeError(f"expected {TIMED_STEPS} steps, learn made {made}")
        env.close()
    measure.emit(
        "stable-baselines3",
        f"ppo_cartpole_sb3_{n_envs}env",
        "steps/s",
        [TIMED_STEPS / wall for wall, _ in timed],
        [TIMED_STEPS / cpu for _, cpu in timed],
        measure.versions("stable-baselines3", "gymnasium", "torch", "numpy"),
    )


def main():
    options = measure.arguments(__doc__.splitlines()[0]).parse_args()
    measure.pin(options.core)
    for n_envs in (1, 8):
        if options.only and f"ppo_cartpole_sb3_{n_envs}env" not in options.only:
            continue
        run(n_envs, options.repetitions)


if __name__ == "__main__":
    main()
