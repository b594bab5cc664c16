"""A stage of a run at a moment: where it is, its networks, its optimisers.

The training loop owns the one `TrainingState` there is; a step changes it; checkpoints keep what `to_dict` gives.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch

from torch_utils import distributed
from training.config import RunConfig, StageConfig
from training.networks.discriminator import DualDiscriminator, PatchDiscriminator
from training.networks.generator import Generator
from training.perceptual import build_imitation
from training.snapshots import copy_matching


@dataclass
class TrainingState:
    """images_seen: of the run; start: those before this stage; steps: of this stage. bad_steps: for each phase, how many times
    in a row its gradients were not finite; strict: phases that may not be so once more (`training.step.optimize`).
    """

    config: RunConfig
    number: int  # of the stage
    stage: StageConfig
    device: torch.device
    labels: torch.Tensor  # cameras of the data set [M, 25]
    networks: dict  # 'G', 'G_ema', 'D', and in stage 2 'D_patch'
    optimizers: dict  # Adam by the network's name; its `defaults` keep the learning rate before the ramp
    imitation: Any  # (patch, target) -> distances [N], or None
    passes: int  # that this process splits its images of a batch into
    ema_kimg: float  # half-life of G_ema
    images_seen: int = 0
    start: int = 0
    steps: int = 0
    augment_p: float = 0.0
    real_signs: list = field(default_factory=list)
    bad_steps: dict = field(default_factory=dict)
    strict: set = field(default_factory=set)

    @property
    def total_steps(self):
        return self.config.steps_of(self.stage)

    @property
    def done(self):
        return self.steps >= self.total_steps

    @property
    def healthy(self):
        """Whether the last gradients of every phase were finite. Waits for the GPU."""
        return not any(map(int, self.bad_steps.values()))

    def watch_gradients(self):
        """Make phases strict whose gradients have been bad for as long as is allowed. Waits for the GPU."""
        self.strict = {phase for phase, count in self.bad_steps.items() if int(count) >= self.config.max_bad_steps}

    def to_dict(self):
        """Plain data for a restart. Every process must call it."""
        signs = distributed.average(torch.stack(self.real_signs)).tolist() if self.real_signs else []
        return {
            'number': self.number,
            'start': self.start,
            'steps': self.steps,
            'augment_p': self.augment_p,
            'real_signs': signs,
            'networks': self.weights(),
            'optimizers': {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }

    def restore(self, saved):
        """Go on from what `to_dict` gave. Every process must call it; the first one's has the tensors.

        The others get the optimisers' here, and the networks' from `agree`.
        """
        self.start, self.steps, self.augment_p = saved['start'], saved['steps'], saved['augment_p']
        self.real_signs = list(torch.tensor(saved['real_signs'], device=self.device))
        for name, weights in saved.get('networks', {}).items():
            self.networks[name].load_state_dict(weights)
        for name, optimizer in self.optimizers.items():
            mine = saved['optimizers'][name] if distributed.rank() == 0 else None
            optimizer.load_state_dict(distributed.share_tensors(mine, self.device))

    # Weights ---------------------------------------------------------------------------------------------------------

    def weights(self):
        """{name: state dict} of the networks."""
        return {name: network.state_dict() for name, network in self.networks.items()}

    def agree(self):
        """Give every process the first one's weights."""
        for network in self.networks.values():
            distributed.broadcast(network)

    def take(self, weights, log):
        """Copy what fits from {name: state dict}; say what was taken and what was not."""
        for name, network in self.networks.items():
            given = weights.get(name, {})
            taken, left = copy_matching(network, given)
            unused = [tensor for tensor in given if tensor not in taken]
            log(
                f'{name}: took {len(taken)} tensors'
                + (f'; {len(left)} start anew: {_summary(left)}' if left else '')
                + (f'; {len(unused)} not used: {_summary(unused)}' if unused else '')
            )

    def lacking(self, weights):
        """The part of {name: state dict} that no network here has a tensor for."""
        own = self.weights()
        missing = {
            name: {key: value for key, value in given.items() if key not in own.get(name, {})} for name, given in weights.items()
        }
        return {name: given for name, given in missing.items() if given}


def build_state(config, number, device, labels, vgg_weights=None):
    """The TrainingState of stage `number` (1 or 2) before its first step; every process builds the same weights.

    labels: cameras of the data set [M, 25]; vgg_weights: file for LPIPS, where the stage uses it.
    """
    stage = config.stage1 if number == 1 else config.stage2
    networks = build_networks(config, number, device)
    options, loss = config.optimizer, stage.loss
    players = {  # learning rate; weight of the lazy regularisation, and its interval in steps
        'G': (options.g_lr, loss.density_weight, options.density_interval),
        'D': (options.d_lr, loss.r1_gamma, options.r1_interval),
        'D_patch': (options.d_lr, loss.r1_gamma_patch, options.r1_interval),
    }
    optimizers = {
        name: build_optimizer(networks[name], lr, options, interval if weight > 0 else None)
        for name, (lr, weight, interval) in players.items()
        if name in networks
    }
    imitation = build_imitation(loss.imitation, vgg_weights, device) if number == 2 else None
    passes = config.batch // (distributed.world_size() * config.batch_per_pass)
    ema_kimg = config.batch * 10 / 32 if config.ema_kimg is None else config.ema_kimg
    return TrainingState(config, number, stage, device, labels, networks, optimizers, imitation, passes, ema_kimg)


def build_networks(config, number, device):
    torch.manual_seed(config.seed)
    G = Generator(config.generator_of(number))
    networks = {'G': G, 'G_ema': copy.deepcopy(G).eval(), 'D': DualDiscriminator(config.discriminator)}
    if number == 2 and config.stage2.loss.patch_weight > 0:
        networks['D_patch'] = PatchDiscriminator(config.patch_discriminator)
    return {name: network.to(device).requires_grad_(False) for name, network in networks.items()}


def build_optimizer(network, lr, config, interval):
    """Adam. interval: steps between regularisations, None where there are none.

    A step with the regularisation comes on top of every `interval` steps, which the ratio makes up for (StyleGAN2, appendix B).
    """
    ratio = interval / (interval + 1) if interval else 1.0
    betas = config.beta1**ratio, config.beta2**ratio
    return torch.optim.Adam(network.parameters(), lr=lr * ratio, eps=config.eps, fused=True, betas=betas)


def _summary(names, most=4):
    """The modules that tensor names belong to, a few of them."""
    modules = list(dict.fromkeys('.'.join(name.split('.')[:2]) for name in names))
    return ', '.join(modules[:most]) + (f' and {len(modules) - most} more' if len(modules) > most else '')
