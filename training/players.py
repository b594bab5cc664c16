"""The three players: a network, its Adam optimiser with lazy regularisation, and how a step is made."""

import math

import torch
from torch.optim import swa_utils

from dnnlib.errors import UserError
from torch_utils import distributed

FINITE_REPLACEMENTS = dict(nan=0.0, posinf=1e5, neginf=-1e5)


class BadGradients(UserError):
    """Gradients that have not been finite for too long."""


class Player:
    """A network that learns. interval: steps between regularisations (None: no lazy regularisation).

    bad_steps_allowed: gradients of a phase that are not finite more often in a row raise BadGradients.
    """

    def __init__(self, name, module, lr, config, interval):
        self.name, self.module, self.interval = name, module, interval
        ratio = interval / (interval + 1) if interval else 1.0  # StyleGAN2, appendix B
        self.lr = lr * ratio
        self.optimizer = torch.optim.Adam(module.parameters(), lr=self.lr, eps=config.eps, fused=True,
                                          betas=(config.beta1**ratio, config.beta2**ratio))
        self.bad_steps_allowed = math.inf
        self._bad_steps = {}  # by phase: a regularisation's good gradients say nothing about the main loss
        module.requires_grad_(False)

    def bad_steps(self):
        """How many times in a row, the last one included, the gradients of the worst phase were not finite. Waits for the GPU."""
        return max(map(int, self._bad_steps.values()), default=0)

    def regularizes_at(self, step):
        return bool(self.interval) and step % self.interval == 0

    def scale_learning_rate(self, factor):
        for group in self.optimizer.param_groups:
            group['lr'] = self.lr * factor

    def step(self, phase, passes, loss, report):
        """One optimiser step on the mean over the passes of `loss(pass)`, a scalar. phase: its name, for messages."""
        self.optimizer.zero_grad(set_to_none=True)
        self.module.requires_grad_(True)
        for each in passes:
            (loss(each) / len(passes)).backward()
        self.module.requires_grad_(False)
        self._clean_gradients(phase, report)
        self.optimizer.step()

    def _clean_gradients(self, phase, report):
        """Average over processes, then replace what is not finite (METHOD: section 5)."""
        parameters = list(self.module.parameters())
        distributed.average_gradients(parameters)
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        report(f'gradients/{self.name}', norm.nan_to_num(**FINITE_REPLACEMENTS))
        report(f'gradients/{self.name}_not_finite', 1 - norm.isfinite().float())
        self._bad_steps[phase] = torch.where(norm.isfinite(), 0, self._bad_steps.get(phase, 0) + 1)
        if self.bad_steps_allowed < math.inf and self._bad_steps[phase] > self.bad_steps_allowed:
            raise BadGradients(f'phase {phase}: the gradients of {self.name} are not finite, {int(self._bad_steps[phase])} times '
                               'in a row, in ' + _some([name for name, p in self.module.named_parameters() if not _is_finite(p.grad)]))
        for gradient in gradients:
            torch.nan_to_num(gradient, **FINITE_REPLACEMENTS, out=gradient)


def _is_finite(gradient):
    return gradient is None or bool(gradient.isfinite().all())


def _some(names, most=5):
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


@torch.no_grad()
def update_average(average, module, beta):
    """Exponential moving average of parameters; buffers are copied."""
    swa_utils.get_ema_multi_avg_fn(beta)(list(average.parameters()), list(module.parameters()), None)
    for target, source in zip(average.buffers(), module.buffers()):
        target.copy_(source)


def average_beta(batch, half_life_kimg, rampup, images_seen):
    """EMA decay per step: half-life in thousands of images, at most `rampup` times the images seen."""
    half_life = half_life_kimg * 1000
    if rampup is not None:
        half_life = min(half_life, images_seen * rampup)
    return 0.5 ** (batch / max(half_life, 1e-8))
