"""Writes the golden transitions of the classic control tasks.

    pip install gymnasium==1.4.0 numpy==2.4.6
    python tests/golden/generate/classic.py

States are injected after a reset, then played with random actions until the sequence is over or the task terminates.
"""

import json
import pathlib
from importlib.metadata import version

import gymnasium
import numpy as np

SEED = 20240608
OUT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 12
EPISODES = 24


def single(value):
    return float(np.format_float_scientific(np.float32(value), unique=True))


def cart_pole(rng, env):
    env.state = rng.uniform(-1, 1, 4) * np.array([2.3, 3.0, 0.2, 3.0])


def pendulum(rng, env):
    env.state = rng.uniform(-1, 1, 2) * np.array([9.0, 8.0])


def acrobot(rng, env):
    env.state = rng.uniform(-1, 1, 4) * np.array([np.pi, np.pi, 12.0, 26.0])


def acrobot_nips(rng, env):
    env.book_or_nips = "nips"
    acrobot(rng, env)


def mountain_car(rng, env):
    env.state = np.array([rng.uniform(-1.2, 0.6), rng.uniform(-0.07, 0.07)], dtype=np.float32)


def cart_pole_semi_implicit(rng, env):
    env.kinematics_integrator = "semi-implicit euler"
    cart_pole(rng, env)


TASKS = [
    ("cart_pole", {}, "CartPole-v1", cart_pole),
    ("cart_pole", {"integrator": "semi_implicit_euler"}, "CartPole-v1", cart_pole_semi_implicit),
    ("pendulum", {}, "Pendulum-v1", pendulum),
    ("acrobot", {}, "Acrobot-v1", acrobot),
    ("acrobot", {"equations": "nips"}, "Acrobot-v1", acrobot_nips),
    ("mountain_car_continuous", {}, "MountainCarContinuous-v0", mountain_car),
]


def play(rng, env, place):
    core = env.unwrapped
    env.reset(seed=int(rng.integers(2**31)))
    place(rng, core)
    start, steps = [float(x) for x in core.state], []
    for _ in range(STEPS):
        if isinstance(core.action_space, gymnasium.spaces.Discrete):
            action = int(rng.integers(core.action_space.n))
            written = action
        else:
            # Beyond the limits now and then.
            scale = 1.5 if rng.random() < 0.2 else 1.0
            action = (rng.uniform(-1, 1, 1) * core.action_space.high * scale).astype(np.float32)
            if rng.random() < 0.1:
                action = core.action_space.high * np.float32(rng.choice([-1, 1]))
            written = single(action[0])
        observation, reward, terminated, _, _ = core.step(action)
        steps.append(
            {
                "action": written,
                "observation": [single(x) for x in observation],
                "state": [float(x) for x in core.state],
                "reward": float(reward),
                "terminated": bool(terminated),
            }
        )
        if terminated:
            break
    return {"start": start, "steps": steps}


def main():
    groups = []
    for number, (name, fields, gym_id, place) in enumerate(TASKS):
        rng = np.random.default_rng([SEED, number])
        env = gymnasium.make(gym_id)
        groups.append(
            {
                "env": name,
                "config": fields,
                "reference": gym_id,
                "horizon": env.spec.max_episode_steps,
                "episodes": [play(rng, env, place) for _ in range(EPISODES)],
            }
        )
    header = {
        "generator": "tests/golden/generate/classic.py",
        "packages": {p: version(p) for p in ("gymnasium", "numpy")},
        "seed": SEED,
        "tolerance": {"observations": 1e-6, "state": 1e-9, "rewards": 1e-9},
    }
    text = json.dumps({"header": header, "groups": groups}, separators=(",", ":"))
    path = OUT / "classic.json"
    path.write_text(text.replace('{"start"', '\n{"start"') + "\n")
    print(path.name, len(text))


if __name__ == "__main__":
    main()
