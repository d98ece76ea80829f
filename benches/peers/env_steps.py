"""Environment steps per second: mpe2, Gymnasium and, on request, JaxMARL.

Actions are drawn before the clock starts. A multi-agent step moves all agents and counts once.
Environments are reset as soon as an episode ends, and the reset is part of the time.
"""

import os
import sys

import measure

SPREAD_CYCLES = 25
MPE_STEPS = 4_000
CARTPOLE_STEPS = 100_000
PENDULUM_STEPS = 50_000
VECTOR_ENVS = 1_024
VECTOR_STEPS = 200
JAX_ENVS = 1_024
JAX_STEPS = 200


def mpe(case, build, repetitions):
    """A PettingZoo parallel environment under uniformly random actions."""
    import numpy as np

    env = build()
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    actions = [
        {agent: int(rng.integers(env.action_space(agent).n)) for agent in env.possible_agents}
        for _ in range(MPE_STEPS)
    ]

    def work():
        env.reset()
        for action in actions:
            env.step(action)
            if not env.agents:
                env.reset()

    version = measure.versions("mpe2", "pettingzoo", "numpy")
    measure.rate("mpe2", case, MPE_STEPS, work, repetitions, version)


def gymnasium_single(case, env_id, steps, repetitions):
    """One Gymnasium environment as `gymnasium.make` gives it, without the environment checker."""
    import gymnasium

    env = gymnasium.make(env_id, disable_env_checker=True)
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(steps)]

    def work():
        env.reset()
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    version = measure.versions("gymnasium", "numpy")
    measure.rate("gymnasium", case, steps, work, repetitions, version)


def gymnasium_vector(case, env_id, repetitions):
    """Gymnasium's own NumPy-vectorised variant of an environment, where it has one."""
    import gymnasium

    env = gymnasium.make_vec(
        env_id, num_envs=VECTOR_ENVS, vectorization_mode="vector_entry_point"
    )
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(VECTOR_STEPS)]

    def work():
        for action in actions:
            env.step(action)

    version = measure.versions("gymnasium", "numpy")
    steps = VECTOR_ENVS * VECTOR_STEPS
    measure.rate("gymnasium-vector", case, steps, work, repetitions, version, envs=VECTOR_ENVS)


def jaxmarl_spread(repetitions):
    """JaxMARL's simple_spread: `vmap` over the environments, `scan` over random steps, compiled."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    )
    try:
        import jax
        import jaxmarl
    except ImportError as error:
        print(f"skipped: jaxmarl simple_spread_steps ({error})", file=sys.stderr)
        return

    env = jaxmarl.make("MPE_simple_spread_v3")
    step = jax.vmap(env.step)
    spaces = [env.action_space(agent) for agent in env.agents]
    split = jax.vmap(lambda key: jax.random.split(key, 2 + len(spaces)), out_axes=1)

    def advance(carry, _):
        keys, state = carry
        keys, step_keys, *action_keys = split(keys)
        actions = {
            agent: jax.vmap(space.sample)(key)
            for agent, space, key in zip(env.agents, spaces, action_keys)
        }
        # `step` resets finished environments by itself.
        _, state, reward, _, _ = step(step_keys, state, actions)
        return (keys, state), reward[env.agents[0]]

    @jax.jit
    def rollout(keys, state):
        return jax.lax.scan(advance, (keys, state), None, JAX_STEPS)

    keys = jax.random.split(jax.random.PRNGKey(0), JAX_ENVS)
    _, state = jax.jit(jax.vmap(env.reset))(keys)

    def work():
        jax.block_until_ready(rollout(keys, state))

    version = measure.versions("jax", "jaxmarl")
    steps = JAX_ENVS * JAX_STEPS
    measure.rate(
        "jaxmarl", "simple_spread_steps", steps, work, repetitions, version, envs=JAX_ENVS
    )


def main():
    parser = measure.arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--jaxmarl", action="store_true", help="measure JaxMARL, and nothing else"
    )
    options = parser.parse_args()
    measure.pin(options.core)
    repetitions = options.repetitions
    if options.jaxmarl:
        jaxmarl_spread(repetitions)
        return

    def spread():
        from mpe2 import simple_spread_v3

        return simple_spread_v3.parallel_env(N=3, max_cycles=SPREAD_CYCLES)

    def tag():
        from mpe2 import simple_tag_v3

        return simple_tag_v3.parallel_env(
            num_good=1, num_adversaries=3, num_obstacles=2, max_cycles=SPREAD_CYCLES
        )

    cases = {
        "simple_spread_steps": [lambda case: mpe(case, spread, repetitions)],
        "simple_tag_steps": [lambda case: mpe(case, tag, repetitions)],
        "cartpole_steps": [
            lambda case: gymnasium_single(case, "CartPole-v1", CARTPOLE_STEPS, repetitions),
            lambda case: gymnasium_vector(case, "CartPole-v1", repetitions),
        ],
        "pendulum_steps": [
            lambda case: gymnasium_single(case, "Pendulum-v1", PENDULUM_STEPS, repetitions)
        ],
    }
    for case, runs in cases.items():
        if options.only and case not in options.only:
            continue
        for run in runs:
            run(case)


if __name__ == "__main__":
    main()
