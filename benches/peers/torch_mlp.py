"""PyTorch eager on control-sized networks: forward, training step, input gradient, PPO step.

Network: 18 inputs, two hidden layers of 64 with tanh, 5 outputs, in single precision. The critic of
the PPO step has the same body and one output. Everything runs on one thread.

- `mlp_forward_b{B}`: outputs without recording a graph.
- `mlp_train_b{B}`: forward, mean of squared outputs, backward, one step of fused Adam.
- `mlp_input_gradient_b{B}`: gradient of the mean of squared outputs for the inputs only; the
  weights take part as constants.
- `ppo_step_b{B}`: actor and critic forward, clipped surrogate, entropy bonus, value loss, backward
  through both, one step of fused Adam over both. There is no gradient clipping and no
  normalisation of advantages.
"""

import measure

INPUTS, HIDDEN, ACTIONS = 18, 64, 5
BATCHES = (1, 16, 64, 256, 2048)
PPO_BATCHES = (64, 256, 2048)
CLIP_RANGE, ENTROPY_COEF, VALUE_COEF = 0.2, 0.01, 0.5
LEARNING_RATE = 3e-4


def network(outputs):
    from torch import nn

    return nn.Sequential(
        nn.Linear(INPUTS, HIDDEN),
        nn.Tanh(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.Tanh(),
        nn.Linear(HIDDEN, outputs),
    )


def forward(batch):
    import torch

    net = network(ACTIONS).requires_grad_(False)
    inputs = torch.randn(batch, INPUTS)

    def work():
        with torch.inference_mode():
            net(inputs)

    return work


def train(batch):
    import torch

    net = network(ACTIONS)
    inputs = torch.randn(batch, INPUTS)
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, fused=True)

    def work():
        optimizer.zero_grad(set_to_none=True)
        net(inputs).square().mean().backward()
        optimizer.step()

    return work


def input_gradient(batch):
    import torch

    net = network(ACTIONS).requires_grad_(False)
    inputs = torch.randn(batch, INPUTS, requires_grad=True)

    def work():
        torch.autograd.grad(net(inputs).square().mean(), inputs)

    return work


def ppo_step(batch):
    import torch

    actor, critic = network(ACTIONS), network(1)
    parameters = [*actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
    observations = torch.randn(batch, INPUTS)
    actions = torch.randint(ACTIONS, (batch, 1))
    old_log_probs = torch.full((batch,), -1.6) + 0.1 * torch.randn(batch)
    advantages = torch.randn(batch)
    returns = torch.randn(batch)

    def work():
        log_probs = torch.log_softmax(actor(observations), dim=1)
        taken = log_probs.gather(1, actions).squeeze(1)
        ratio = (taken - old_log_probs).exp()
        clipped = ratio.clamp(1 - CLIP_RANGE, 1 + CLIP_RANGE)
        surrogate = torch.min(ratio * advantages, clipped * advantages).mean()
        entropy = -(log_probs.exp() * log_probs).sum(dim=1).mean()
        value_loss = (critic(observations).squeeze(1) - returns).square().mean()
        loss = VALUE_COEF * value_loss - surrogate - ENTROPY_COEF * entropy
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return work


def main():
    options = measure.arguments(__doc__.splitlines()[0]).parse_args()
    measure.pin(options.core)
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    version = measure.versions("torch")
    cases = [(f"mlp_forward_b{batch}", batch, forward) for batch in BATCHES]
    cases += [(f"mlp_train_b{batch}", batch, train) for batch in BATCHES]
    cases += [(f"mlp_input_gradient_b{batch}", batch, input_gradient) for batch in BATCHES]
    cases += [(f"ppo_step_b{batch}", batch, ppo_step) for batch in PPO_BATCHES]
    for case, batch, build in cases:
        if options.only and case not in options.only:
            continue
        measure.latency("torch", case, batch, build(batch), options.repetitions, version)


if __name__ == "__main__":
    main()
