"""How closely this project computes what the published implementation computes.

    python -m tests.parity [GOLDEN ...]

prints the worst error of every quantity of every golden. tests/test_parity.py asserts the same rows.
"""

import sys
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F

from interop import published as reference_networks
from tests.helpers import GOLDENS, Prescribed, load_golden, worst_error
from torch_utils.ops.bias_act import GAINS, KERNEL_SLOPES, reference
from torch_utils.ops.upfirdn2d import setup_filter, upfirdn2d
from training import step
from training.augment import augment
from training.config import LossConfig
from training.losses import FakeInputs, crop, r1_penalty
from training.networks.aware_conv import align_planes
from training.networks.discriminator import resize
from training.networks.stylegan2 import conv2d, modulated_conv2d
from training.rendering import cameras

OUTPUT = 1e-4  # of the output's own scale
GRADIENT = 2e-3  # relative, of a gradient's norm
ILL_CONDITIONED = 3e-2  # the same through S2D's leaky ReLUs, where rounding of the weights moves some norms this much
R1_GRADIENT = (
    5e-3  # of R1 alone, relative to at least R1_FLOOR of the largest norm: small gradients of biases are ill-conditioned
)
R1_FLOOR = 1 / 50
MISSED_DEPTH = 5e-4  # depths, where rays miss the box
ROUNDING = 1e-7
SMALL_NORM = 1e-6  # gradient norms below this are rounding


class Row(NamedTuple):
    """One quantity: its worst error, what is allowed, and over how many values or parameters."""

    quantity: str
    error: float
    allowed: float
    count: int
    worst: str = ''


class Comparison:
    """The rows of one golden. Keeps account of which arrays were compared."""

    def __init__(self, name):
        self.name = name
        self.arrays, self.meta = load_golden(name)
        self.rows, self.compared = [], set()

    def nudge(self, key, seed):
        """Change an input by about the rounding of fp32."""
        values = self.arrays[key]
        noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed))
        self.arrays[key] = values * (1 + ROUNDING * noise)

    def agrees(self):
        return all(row.error <= row.allowed for row in self.rows)

    def output(self, key, actual, allowed=OUTPUT, label=None):
        """An output against the array `key`."""
        self.compared.add(key)
        expected = self.arrays[key].float()
        self.rows.append(Row(label or key, worst_error(actual.detach().float(), expected), allowed, expected.numel()))

    def gradients(self, label, module, expected, allowed, unrecorded=lambda name: False, floor=0.0):
        """The gradients that `module` holds now against norms by published name, in both directions.

        unrecorded: own names whose gradients the golden does not have; floor: errors are relative to at least this share of the
        largest norm.
        """
        floor = floor * max(expected.values())
        own = {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in module.named_parameters()}
        worst, where = 0.0, ''
        for published, norm in expected.items():
            actual = own.pop(reference_networks.own_name(published, module.config))
            error = (
                abs(actual - norm) / max(norm, floor) if norm >= SMALL_NORM else max(actual - 2 * SMALL_NORM, 0.0) / SMALL_NORM
            )
            if not error <= worst:
                worst, where = error, published
        for name, actual in own.items():  # no gradient there, so none here
            if actual > 2 * SMALL_NORM and not unrecorded(name):
                worst, where = float('inf'), name
        self.rows.append(Row(label, worst, allowed, len(expected), where))

    def scalar(self, label, actual, expected, allowed=OUTPUT):
        self.rows.append(Row(label, abs(float(actual) - expected) / abs(expected), allowed, 1))

    def state(self, prefix='state/'):
        return {key[len(prefix) :]: value for key, value in self.arrays.items() if key.startswith(prefix)}

    def uncompared(self, inputs):
        """Arrays that are neither weights, nor among the `inputs`, nor compared."""
        return sorted(
            key
            for key in self.arrays
            if not key.startswith(('state/', 'in/', 'probe/')) and key not in self.compared and key not in inputs
        )


def trainable(class_name, init_kwargs, state):
    return reference_networks.build_from_reference(class_name, init_kwargs, state).requires_grad_(True)


# ---------------------------------------------------------------------------------------------------------------------
# One function per kind of golden


def compare_cameras(it):
    angles = torch.tensor(it.meta['horizontal_vertical'], dtype=torch.float32)
    it.output('poses', cameras.look_at_pose(angles[:, 0], angles[:, 1], it.meta['lookat'], it.meta['radius']))
    label = cameras.make_label(it.arrays['poses'], it.arrays['intrinsics'])
    origins, directions = cameras.cast_rays(label, cameras.pixel_centres(it.meta['ray_resolution']))
    it.output('ray_origins', origins)
    it.output('ray_directions', directions)


def compare_ops(it):
    arrays, meta = it.arrays, it.meta
    for i, case in enumerate(meta['upfirdn2d']):
        taps = setup_filter(case['f'])
        it.output(f'upfirdn2d/{i}/filter', taps)
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in case.items() if key != 'f'}
        it.output(f'upfirdn2d/{i}/y', upfirdn2d(arrays['x'], taps, **options))
    for i, case in enumerate(meta['bias_act']):
        x, b = arrays['x'].clone().requires_grad_(), arrays['b'].clone().requires_grad_()
        it.compared |= {f'bias_act/{i}/{key}' for key in ('y', 'dx', 'db')}
        if case['act'] not in GAINS:  # recorded, but no network has it
            continue
        slope, gain = case['alpha'] or KERNEL_SLOPES.get(case['act']), case['gain'] or GAINS[case['act']]
        y = reference(x, b, 1, slope, gain, case['clamp'])
        dx, db = torch.autograd.grad(y, [x, b], arrays['dy'])
        for key, value in (('y', y), ('dx', dx), ('db', db)):
            it.output(f'bias_act/{i}/{key}', value, label=f'bias_act/{i}/{key} ({case["act"]})')
    taps = setup_filter([1, 3, 3, 1])
    for i, case in enumerate(meta['conv2d_resample']):
        as_ours = case['flip_weight'] == (case['up'] == 1)  # recorded with any kernel; ours is flipped where it upsamples
        weight = arrays['conv_w'] if as_ours else arrays['conv_w'].flip([2, 3])
        y = conv2d(arrays['conv_x'], weight, taps, case['up'], case['down'])
        y = F.pad(y, 4 * [case['padding'] - weight.shape[-1] // 2])  # negative: ours pads so that the size stays
        it.output(f'conv2d_resample/{i}/y', y)
    for i, case in enumerate(meta['modulated_conv2d']):
        it.output(
            f'modulated_conv2d/{i}/y',
            modulated_conv2d(arrays['conv_x'], arrays['conv_w'], arrays['mod_styles'], resample_filter=taps, **case),
        )
    for i, case in enumerate(meta['filtered_resizing']):
        it.output(
            f'filtered_resizing/{i}/y',
            resize(arrays['resize_x'], case['size'], case['mode']),
            label=f'filtered_resizing/{i}/y ({case["mode"]})',
        )
    it.output('aware_out', align_planes(arrays['aware_in'].unflatten(0, (-1, 3))).flatten(0, 1))


def compare_augment(it):
    from tests.training.test_augment import at_percentile  # the draws that the golden stands for

    for i, percentile in enumerate(it.meta['debug_percentiles']):
        draws = at_percentile(len(it.arrays['images']), percentile)
        it.output(f'out/{i}', augment(it.arrays['images'], draws, 1.0), label=f'all transforms at {percentile}')


def compare_discriminator(it, class_name):
    arrays = it.arrays
    D = trainable(class_name, it.meta['init_kwargs'], it.state())
    inputs = [arrays[key].clone().requires_grad_() for key in ('in/image', 'in/image_raw') if key in arrays]
    logits = D(*inputs, *([arrays['c']] if 'c' in arrays else []))
    penalty = r1_penalty(logits, inputs)
    it.output('logits', logits)
    it.output('r1_penalty', penalty)
    (F.softplus(-logits).mean() + 0.5 * penalty.mean()).backward()
    it.gradients('gradient norms', D, it.meta['grad_norms'], GRADIENT)


def compare_r1(it):
    """R1 with blur and augmentation: what the discriminator receives, and the penalty there."""
    arrays, meta = it.arrays, it.meta
    D = trainable(meta['class_name'], meta['init_kwargs'], it.state())
    dual = meta['class_name'] in reference_networks.DUAL_DISCRIMINATORS
    for i, case in enumerate(meta['cases']):
        received = []
        receiver = Receiving(D, received)
        size = meta['raw_resolution' if dual else 'patch_resolution']
        G = SimpleNamespace(config=SimpleNamespace(render_resolution=size))
        context = step.LossContext(
            G,
            receiver,
            receiver,
            LossConfig(r1_gamma=1.0, r1_gamma_patch=1.0),
            augment=recorded_augment(case),
            blur_sigma=case['blur_sigma'],
        )
        random = Prescribed(len(arrays['real']), None if dual else arrays['patch_offsets'].long())
        D.zero_grad()
        loss = step.discriminator_r1(context, 'D' if dual else 'D_patch', arrays['real'], arrays.get('c'), random)
        label = f'{i} (blur {case["blur_sigma"]:g}, {case["augment"]} {case.get("percentile", "")})'
        for name, value in zip(('image', 'image_raw'), received):
            it.output(f'{i}/{name}', value, label=f'{label}: {name}')
        it.output(f'{i}/logits', receiver.logits, label=f'{label}: logits')
        it.output(f'{i}/r1_penalty', r1_penalty(receiver.logits, received), label=f'{label}: penalty')
        loss.backward()
        it.gradients(f'{label}: gradient norms', D, case['grad_norms'], R1_GRADIENT, floor=R1_FLOOR)


class Receiving:
    """A discriminator that notes the images it is given and its logits."""

    def __init__(self, D, received):
        self.D, self.received, self.logits = D, received, None

    def __call__(self, *inputs):
        self.received[:] = [x for x in inputs if x.ndim == 4]
        self.logits = self.D(*inputs)
        return self.logits


def recorded_augment(case):
    """The augmentation of a recorded case, or None."""
    from tests.training.test_augment import at_percentile

    if case['augment'] is None:
        return None
    p, percentile = (0.0, 0.5) if case['augment'] == 'p0' else (1.0, case['percentile'])
    return lambda images, _, random: augment(images, at_percentile(len(images), percentile), p)


def compare_missing_rays(it):
    """near/far 'auto' where rays miss the box: the limits themselves, batches of one, and a camera that sees nothing of it."""
    arrays, meta = it.arrays, it.meta
    compare_generator(it, meta['class_name'], depth=MISSED_DEPTH)
    G = trainable(meta['class_name'], meta['init_kwargs'], it.state())
    side, resolution = meta['init_kwargs']['rendering_kwargs']['box_warp'], meta['neural_rendering_resolution']

    def maps(values):
        return values.transpose(1, 2).unflatten(2, (resolution, resolution))

    its_rays = cameras.cast_rays(arrays['c'], cameras.pixel_centres(resolution))
    near, far, hit = cameras.intersect_box(*its_rays, side)
    it.output('ray_hits', maps(hit.float()))
    it.output('box_near', maps(near.where(hit, -1.0)))
    it.output('box_far', maps(far.where(hit, -2.0)))
    for key, values in zip(('near', 'far'), cameras.box_limits(*its_rays, side)):
        it.output(key, maps(values))
    ws, views = arrays['ws_layers'], {'away': (0, arrays['away/c'])}
    views |= {f'alone/{i}': (i, arrays['c'][i : i + 1]) for i in range(len(ws))}
    for prefix, (i, c) in views.items():
        with torch.no_grad():
            planes = G.planes(ws[i : i + 1], noise_mode='const')
            out = G.render(planes, c, '2d', ws=ws[i : i + 1], render_resolution=resolution, sampling='deterministic')
        it.output(f'{prefix}/image_raw', out['image_raw'])
        it.output(f'{prefix}/image_depth', out['image_depth'], MISSED_DEPTH)


def compare_generator(it, class_name=None, depth=OUTPUT):
    arrays, meta = it.arrays, it.meta
    G = trainable(class_name or meta['class_name'], meta['init_kwargs'], it.state())
    c, resolution = arrays['c'], meta['neural_rendering_resolution']
    ws = G.mapping(arrays['z'], c)
    it.output('ws', ws)
    it.output('ws_trunc', G.mapping(arrays['z'], c, truncation_psi=0.7, truncation_cutoff=5))
    ws = ws + (arrays['ws_layers'] - arrays['ws'])
    it.output('ws_layers', ws)
    planes = G.planes(ws, noise_mode='const')
    outputs = {}
    if 'planes' in arrays:
        it.output('planes', planes.coarse)
    if 'planes_coarse' in arrays:
        it.output('planes_coarse', planes.coarse)
        it.output('planes_residual', planes.residual)
    two = G.render(planes, c, '2d', ws=ws, render_resolution=resolution, sampling='deterministic')
    for key in ('image', 'image_raw', 'image_depth'):
        it.output(key, two[key], depth if key == 'image_depth' else OUTPUT)
        outputs[key] = two[key]
    sigma, rgb = G.query(planes, arrays['points'])
    it.output('points_sigma', sigma)
    it.output('points_rgb', rgb)
    if 'patch_offsets' in arrays:
        outputs['patch_image_raw'] = _compare_3d_branch(it, G, planes, two, resolution, depth)
    _compare_probes(it, G, outputs)


def _compare_3d_branch(it, G, planes, two, resolution, depth):
    """The patch of the 3D branch, which is returned, and the same window of what it is trained against."""
    c, corners = it.arrays['c'], it.arrays['patch_offsets'].long()
    patch = G.render(planes, c, '3d', patch=corners, render_resolution=resolution, sampling='deterministic')
    it.output('patch_image_raw', patch['image'])
    it.output('patch_image', crop(two['image'], corners, resolution))
    it.output('patch_image_gr', crop(resize(two['image_raw'], G.config.image_resolution), corners, resolution))
    with torch.no_grad():
        whole = G.render(planes, c, '3d', render_resolution=it.meta['full_resolution'], sampling='deterministic')
    it.output('full3d_image_raw', whole['image'])
    it.output('full3d_depth', whole['image_depth'], depth)
    return patch['image']


def _compare_probes(it, G, outputs):
    for key, norms in it.meta['grad_norms'].items():
        probe = it.arrays[f'probe/{key}']
        loss = (probe * outputs[key]).sum()
        # The sum has cancelling terms: its own scale is theirs.
        it.compared.add(f'loss/{key}')
        scale = float((probe * outputs[key].detach()).abs().sum())
        it.rows.append(Row(f'loss/{key}', abs(float(loss.detach()) - float(it.arrays[f'loss/{key}'])) / scale, OUTPUT, 1))
        G.zero_grad()
        loss.backward(retain_graph=True)
        through_s2d = key == 'image' or (key == 'image_raw' and it.name.startswith('generator128'))
        it.gradients(f'gradient norms of {key}', G, norms, ILL_CONDITIONED if through_s2d else GRADIENT)


STATS = {  # the release's names of what the losses note
    'Gmain': {
        'Loss/G/loss': 'loss/G/adversarial',
        'Loss/G/lpips': 'loss/G/imitation',
        'Loss/scores/fake': 'logits/fake',
        'Loss/scores/patch_fake': 'logits/patch_fake',
        'Loss/signs/fake': 'signs/fake',
        'Loss/signs/patch_fake': 'signs/patch_fake',
    },
    'Greg': {'Loss/G/reg': 'loss/G/density'},
    'Dmain': {
        'Loss/scores/fake': 'logits/fake_seen_by_D',
        'Loss/scores/real': 'logits/real',
        'Loss/signs/fake': 'signs/fake_seen_by_D',
        'Loss/signs/real': 'signs/real',
        'Loss/D/loss': 'loss/D',
    },
    'Dreg': {'Loss/r1_penalty': 'loss/D/r1_penalty'},
    'D_patchmain': {
        'Loss/scores/patch_fake': 'logits/patch_fake_seen_by_D',
        'Loss/scores/patch_real': 'logits/patch_real',
        'Loss/signs/patch_fake': 'signs/patch_fake_seen_by_D',
        'Loss/signs/patch_real': 'signs/patch_real',
        'Loss/D_patch/loss': 'loss/D_patch',
    },
    'D_patchreg': {'Loss/patch_r1_penalty': 'loss/D_patch/r1_penalty'},
}


def compare_losses(it):
    """Every phase of every case; a golden without cases is one, without blur and augmentation."""
    for case in it.meta.get('cases', [{'blur_sigma': 0.0, 'augment': None, 'phases': it.meta.get('phases')}]):
        _compare_phases(it, case)


def _compare_phases(it, case):
    arrays, meta = it.arrays, it.meta
    piped = case['augment'] is not None
    G = trainable(reference_networks.GENERATORS[1], meta['G_init'], it.state('state/G/'))
    G.config = G.config.replace(render_resolution=meta['neural_rendering_resolution'])
    D = trainable(reference_networks.DUAL_DISCRIMINATORS[0], meta['D_init'], it.state('state/D/'))
    D_patch = trainable(reference_networks.SINGLE_DISCRIMINATORS[0], meta['D_patch_init'], it.state('state/D_patch/'))
    config = LossConfig(
        r1_gamma=meta['r1_gamma'],
        r1_gamma_patch=meta['r1_gamma_patch'],
        patch_weight=meta['patch_gan'],
        density_spread=meta['G_init']['rendering_kwargs']['density_reg_p_dist'],
    )
    context = step.LossContext(
        G,
        D,
        D_patch,
        config,
        imitation=lambda x, target: (x - target).square().mean(dim=(1, 2, 3)),
        augment=recorded_augment(case),
        blur_sigma=case['blur_sigma'],
        noise_mode='const',
        sampling='deterministic',
    )
    described = f'blur {case["blur_sigma"]:g}, {case["augment"]} {case.get("percentile", "")}: ' if 'cases' in meta else ''
    for phase, expected in case['phases'].items():
        kind, _, part = phase.partition('/')
        c = arrays['c']
        inputs = FakeInputs(arrays['z'], c, torch.zeros_like(c) if kind == 'plain' else c.roll(1, dims=0))
        for network in (G, D, D_patch):
            network.zero_grad()
        context.seen.clear()
        loss, network = _phase(context, part, inputs, arrays)
        loss.backward()
        seen = {name: float(values[-1].float().mean()) for name, values in context.seen.items()}
        stats = dict(expected['stats'])
        seen |= {'G/patch': config.patch_weight * seen.get('loss/G/patch', 0.0), 'loss': float(loss.detach())}
        names = STATS[part] | {'Loss/G/patch': 'G/patch', 'Loss/D/reg': 'loss', 'Loss/D_patch/reg': 'loss'}
        for published, value in stats.items():
            if part == 'Dreg' and published in STATS['Dmain']:
                continue  # not noted: what Dmain has seen
            if value == 0:  # a mean of signs
                it.rows.append(Row(f'{described}{phase} {published}', abs(seen[names[published]]), OUTPUT, 1))
            else:
                it.scalar(f'{described}{phase} {published}', seen[names[published]], value)
        r1 = part in ('Dreg', 'D_patchreg') and 'cases' in meta
        allowed = (ILL_CONDITIONED if piped else R1_GRADIENT) if r1 else GRADIENT
        it.gradients(
            f'{described}{phase} gradient norms',
            network,
            expected['grad_norms'],
            allowed,
            lambda name: 'noise_strength' in name,
            floor=R1_FLOOR if r1 else 0.0,
        )


def _phase(context, part, inputs, arrays):
    """The loss of a phase, and the network that learns from it."""
    real, real_c = arrays['real'], arrays['real_c']
    fake_random = Prescribed(
        len(inputs.z), arrays['patch_offsets_fake'].long(), arrays['greg_coordinates'], arrays['greg_perturbation']
    )
    real_random = Prescribed(len(real), arrays['patch_offsets_real'].long())
    if part == 'Gmain':
        return step.generator_loss(context, inputs, fake_random), context.G
    if part == 'Greg':
        return step.density_loss(context, inputs, fake_random), context.G
    if part == 'Dreg':
        return step.discriminator_r1(context, 'D', real, real_c, real_random), context.D
    if part == 'D_patchreg':
        return step.discriminator_r1(context, 'D_patch', real, real_c, real_random), context.D_patch
    with torch.no_grad():
        fakes = step.generate(context, inputs, fake_random, image=True, patch=True)
    if part == 'Dmain':
        return step.discriminator_loss(context, 'D', fakes, real, real_c, real_random), context.D
    return step.discriminator_loss(context, 'D_patch', fakes, real, real_c, real_random), context.D_patch


_GENERATOR_INPUTS = ('z', 'c', 'points', 'patch_offsets')
_LOSS_INPUTS = ('z', 'c', 'real', 'real_c', 'greg_coordinates', 'greg_perturbation', 'patch_offsets_fake', 'patch_offsets_real')
COMPARISONS = {  # golden: how it is compared, and which arrays are inputs
    'cameras': (compare_cameras, ('intrinsics',)),
    'ops': (compare_ops, ('x', 'b', 'dy', 'conv_x', 'conv_w', 'mod_styles', 'resize_x', 'aware_in')),
    'augment_pipe': (compare_augment, ('images',)),
    'eg3d_generator': (lambda it: compare_generator(it, reference_networks.GENERATORS[0]), _GENERATOR_INPUTS),
    'mimic3d_stage1_generator': (lambda it: compare_generator(it, reference_networks.GENERATORS[0]), _GENERATOR_INPUTS),
    'mimic3d_stage2_generator': (lambda it: compare_generator(it, reference_networks.GENERATORS[1]), _GENERATOR_INPUTS),
    'mimic3d_stage2_auto_white': (lambda it: compare_generator(it, reference_networks.GENERATORS[1]), _GENERATOR_INPUTS),
    'dual_discriminator': (lambda it: compare_discriminator(it, reference_networks.DUAL_DISCRIMINATORS[0]), ('c',)),
    'patch_discriminator': (lambda it: compare_discriminator(it, reference_networks.SINGLE_DISCRIMINATORS[0]), ()),
    'losses': (compare_losses, _LOSS_INPUTS),
    'losses_blur_augment': (compare_losses, _LOSS_INPUTS),
    'r1_dual_discriminator': (compare_r1, ('real', 'c')),
    'r1_patch_discriminator': (compare_r1, ('real', 'patch_offsets')),
    'generator128_eg3d': (compare_generator, _GENERATOR_INPUTS),
    'generator128_mimic3d_stage2': (compare_generator, _GENERATOR_INPUTS),
    'generator_auto_misses': (compare_missing_rays, (*_GENERATOR_INPUTS, 'away/c')),
}


NUDGES = 5


def compare(name):
    """The Comparison of a golden.

    The depths of samples, which have no gradient, jump where a ray's position in the CDF meets the edge of a bin; a golden
    that lies there within rounding falls on one side on one processor and on the other on the next. So where a generator
    does not agree, its latents are nudged by rounding, up to NUDGES - 1 times; a mistake of ours stays one.
    """
    function, inputs = COMPARISONS[name]
    for nudge in range(NUDGES if 'points' in inputs else 1):
        comparison = Comparison(name)
        if nudge:
            comparison.nudge('z', nudge)
        function(comparison)
        left = comparison.uncompared(inputs)
        assert not left, f'{name}: not compared: {left}'
        if comparison.agrees():
            break
    return comparison


def main(names):
    """Print the table. Returns whether everything agrees."""
    agrees = True
    for name in names or COMPARISONS:
        if not (GOLDENS / f'{name}.npz').is_file():
            print(f'{name}: not found in the folder of goldens (MIMIC3D_GOLDENS)')
            agrees = False
            continue
        print(f'\n{name}')
        for row in compare(name).rows:
            good = row.error <= row.allowed
            agrees = agrees and good
            print(
                f'  {"ok " if good else "BAD"} {row.quantity:50} {row.error:9.1e} of {row.allowed:.0e}'
                f'  {row.count:7d}  {row.worst}'
            )
    return agrees


if __name__ == '__main__':
    torch.set_num_threads(1)
    sys.exit(0 if main(sys.argv[1:]) else 1)
