"""Writes the golden transitions of the particle environments, one JSON file per scenario.

    pip install mpe2==1.1.1 numpy==2.4.6
    python tests/golden/generate/mpe.py

States are injected after a reset, then played with random actions. The files hold numbers only; the package produced
them. Cases with `"integrator": "openai"` come from the dozen lines of `openai_step` below instead, which know nothing of
the Rust code, and hold positions and velocities only.
"""

import importlib
import json
import math
import pathlib
from importlib.metadata import version

import numpy as np

SEED = 20240607
OUT = pathlib.Path(__file__).resolve().parent.parent
TOLERANCE = {"observations": 1e-6, "physics": 1e-9, "rewards": 1e-9}

# Package module, keyword arguments of the package -> fields of our configuration, for each variant.
SCENARIOS = {
    "simple": ("simple_v3", [({}, {})]),
    "simple_adversary": ("simple_adversary_v3", [({}, {}), ({"N": 4}, {"n_good": 4})]),
    "simple_crypto": ("simple_crypto_v3", [({}, {})]),
    "simple_push": ("simple_push_v3", [({}, {})]),
    "simple_reference": ("simple_reference_v3", [({}, {}), ({"local_ratio": 0.2}, {"local_ratio": 0.2})]),
    "simple_speaker_listener": ("simple_speaker_listener_v4", [({}, {})]),
    "simple_spread": (
        "simple_spread_v3",
        [({}, {}), ({"N": 5, "local_ratio": 0.3}, {"n_agents": 5, "local_ratio": 0.3}), ({"N": 1}, {"n_agents": 1})],
    ),
    "simple_tag": (
        "simple_tag_v3",
        [
            ({}, {}),
            (
                {"num_good": 2, "num_adversaries": 4, "num_obstacles": 3},
                {"n_good": 2, "n_adversaries": 4, "n_obstacles": 3},
            ),
        ],
    ),
    "simple_world_comm": (
        "simple_world_comm_v3",
        [
            ({}, {}),
            (
                {"num_good": 3, "num_adversaries": 2, "num_obstacles": 2, "num_food": 1, "num_forests": 3},
                {"n_good": 3, "n_adversaries": 2, "n_obstacles": 2, "n_food": 1, "n_forests": 3},
            ),
        ],
    ),
}

# Half-width of the square for positions, scale of velocities: crowded, as at a reset, fast, far outside.
STARTS = [(0.25, 0.5), (1.0, 0.0), (0.6, 3.0), (1.6, 1.0)]
STEPS = 5


def singles(values):
    """Single-precision numbers with the digits that identify them."""
    return [float(np.format_float_scientific(np.float32(v), unique=True)) for v in np.ravel(values)]


def doubles(values):
    return [float(v) for v in np.ravel(values)]


def choices(name, world):
    """Landmark indices that the reset drew, in the order of the Rust scenario."""
    index = {id(lm): i for i, lm in enumerate(world.landmarks)}
    if name in ("simple_adversary", "simple_push"):
        return [index[id(world.agents[0].goal_a)]]
    if name == "simple_crypto":
        key = next(i for i, lm in enumerate(world.landmarks) if lm.color is world.agents[2].key)
        return [index[id(world.agents[0].goal_a)], key]
    if name == "simple_reference":
        return [index[id(a.goal_b)] for a in world.agents]
    if name == "simple_speaker_listener":
        return [index[id(world.agents[0].goal_b)]]
    return []


def random_action(rng, space, continuous):
    if not continuous:
        return int(rng.integers(space.n))
    action = rng.random(space.shape[0]).astype(np.float32)
    kind = rng.integers(4)
    if kind == 0:  # a corner
        action = np.round(action).astype(np.float32)
    elif kind == 1:  # mostly nothing; silence for speakers
        action = action * (rng.random(action.shape) < 0.3).astype(np.float32)
    elif kind == 2:  # silence
        action = np.zeros_like(action)
    return action.astype(np.float32)


def openai_step(agents, landmarks, positions, velocities, forces):
    """Semi-implicit step, written independently of the package. Bodies are dictionaries."""
    bodies = agents + landmarks
    p = np.concatenate([positions, [b["p"] for b in landmarks]]) if landmarks else positions
    total = forces.copy()
    for i in range(len(agents)):
        for j in range(len(bodies)):
            if i == j or not (bodies[i]["collide"] and bodies[j]["collide"]):
                continue
            away = p[i] - p[j]
            d = math.hypot(*away)
            x = (bodies[i]["size"] + bodies[j]["size"] - d) / 1e-3
            total[i] += 100.0 * away / d * 1e-3 * float(np.logaddexp(0.0, x))
    v = 0.75 * velocities + 0.1 * total
    for i, body in enumerate(agents):
        speed = math.hypot(*v[i])
        if body["max_speed"] is not None and speed > body["max_speed"]:
            v[i] *= body["max_speed"] / speed
    return positions + 0.1 * v, v


def body(entity):
    limit, accel = entity.max_speed, entity.accel if entity.accel is not None else 5.0
    p = getattr(entity.state, "p_pos").tolist()
    return {"size": entity.size, "collide": entity.collide, "max_speed": limit, "accel": accel, "p": p}


def inject(rng, world, width, speed):
    n = len(world.agents)
    positions = rng.uniform(-width, width, (n + len(world.landmarks), 2))
    velocities = rng.normal(size=(n, 2)) * speed
    for i, agent in enumerate(world.agents):
        if not agent.movable:
            velocities[i] = 0.0
        agent.state.p_pos, agent.state.p_vel = positions[i].copy(), velocities[i].copy()
    for i, landmark in enumerate(world.landmarks):
        landmark.state.p_pos = positions[n + i].copy()
    return positions, velocities


def play(rng, name, module, arguments, fields, continuous, start):
    """A case from an injected state, or with `start` None a whole episode from the package's own reset."""
    env = module.parallel_env(continuous_actions=continuous, **arguments)
    env.reset(seed=int(rng.integers(2**31)))
    world = env.unwrapped.world
    if start is None:
        positions = np.array([e.state.p_pos for e in world.entities])
        velocities = np.zeros((len(world.agents), 2))
    else:
        positions, velocities = inject(rng, world, *start)
    steps = []
    while len(steps) < STEPS or start is None:
        if not env.agents:
            break
        actions = {a: random_action(rng, env.action_space(a), continuous) for a in env.agents}
        observations, rewards, terminated, truncated, _ = env.step(dict(actions))
        names = env.possible_agents
        steps.append(
            {
                "actions": [singles(actions[a]) if continuous else actions[a] for a in names],
                "positions": doubles([a.state.p_pos for a in world.agents]),
                "velocities": doubles([a.state.p_vel for a in world.agents]),
                "rewards": [float(rewards[a]) for a in names],
                "ends": [any(terminated.values()), any(truncated.values())],
                "observations": [singles(observations[a]) for a in names],
            }
        )
    return {
        "config": fields | {"continuous_actions": continuous},
        "agents": list(env.possible_agents),
        "action_sizes": [
            env.action_space(a).shape[0] if continuous else int(env.action_space(a).n) for a in env.possible_agents
        ],
        "choices": choices(name, world),
        "positions": doubles(positions),
        "velocities": doubles(velocities),
        "steps": steps,
    }


def play_openai(rng, module, start):
    env = module.parallel_env()
    env.reset(seed=0)
    world = env.unwrapped.world
    all_positions, velocities = inject(rng, world, *start)
    n = len(world.agents)
    agents, landmarks = [body(a) for a in world.agents], [body(lm) for lm in world.landmarks]
    p, v, steps = all_positions[:n], velocities, []
    moves = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], float)
    for _ in range(STEPS):
        actions = [int(rng.integers(5)) for _ in range(n)]
        forces = np.array([moves[a] * agents[i]["accel"] for i, a in enumerate(actions)])
        p, v = openai_step(agents, landmarks, p, v, forces)
        steps.append({"actions": actions, "positions": doubles(p), "velocities": doubles(v)})
    return {
        "config": {"integrator": "openai"},
        "agents": list(env.possible_agents),
        "action_sizes": [5] * n,
        "choices": [],
        "positions": doubles(all_positions),
        "velocities": doubles(velocities),
        "steps": steps,
    }


def main():
    for number, (name, (module_name, variants)) in enumerate(SCENARIOS.items()):
        rng = np.random.default_rng([SEED, number])
        module = importlib.import_module(f"mpe2.{module_name}")
        cases = [
            play(rng, name, module, arguments, fields, continuous, start)
            for arguments, fields in variants
            for continuous in (False, True)
            for start in STARTS
        ]
        cases.append(play(rng, name, module, {}, {}, False, None))
        if name in ("simple_spread", "simple_tag"):
            cases += [play_openai(rng, module, start) for start in STARTS]
        header = {
            "generator": "tests/golden/generate/mpe.py",
            "packages": {p: version(p) for p in ("mpe2", "pettingzoo", "numpy")},
            "seed": SEED,
            "tolerance": TOLERANCE,
        }
        text = json.dumps({"header": header, "scenario": name, "cases": cases}, separators=(",", ":"))
        path = OUT / f"mpe_{name}.json"
        path.write_text(text.replace('{"config"', '\n{"config"') + "\n")
        print(path.name, len(text))


if __name__ == "__main__":
    main()
