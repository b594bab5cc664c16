"""Runs a script under torchrun, in one of two processes, of which one fails: one_fails.py FAULT SCRIPT ARGUMENTS..."""

import importlib
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch

from dnnlib.errors import UserError
from torch_utils import distributed, pretrained
from training import perceptual, step


def raising(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def lack_weights():
    """As on a machine without the file and without a network."""
    pretrained.find_weights = raising(pretrained.WeightsError('vgg16.pth is not on this machine'))


def have_weights():
    perceptual.find_vgg_weights, perceptual.load_lpips = lambda option: 'vgg16.pth', lambda *args: None


def lack_data():
    import train

    train.check_inputs = raising(UserError('data.zip does not exist'))


def fill_gpu():
    step.discriminator_loss = raising(torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB'))


def meet_a_bug():
    step.discriminator_loss = raising(KeyError('a bug'))


def be_killed():
    step.discriminator_loss = lambda *args: os.kill(os.getpid(), signal.SIGKILL)


def break_a_metric():
    """Between two collectives."""
    total = distributed.total

    def fail(tensor):
        if tensor.ndim > 1:
            raise UserError('the metric broke')
        return total(tensor)

    distributed.total = fail


FAULTS = {function.__name__: function for function in (lack_weights, lack_data, fill_gpu, meet_a_bug, be_killed, break_a_metric)}

if __name__ == '__main__':
    if os.environ['RANK'] == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':
        FAULTS[sys.argv[1]]()
    else:
        have_weights()
    importlib.import_module(sys.argv[2]).main(sys.argv[3:])
