"""Snapshots in the nine layouts that the published training loops write: each opens, and converts, as the same networks."""

import json
import warnings

import pytest

from interop import published
from tests import published as files
from tests.helpers import GOLDENS, succeed
from training import legacy
from training.presets import PRESETS, generator_config
from training.snapshots import load_augment_p, load_networks


@pytest.fixture(scope='module')
def recorded():
    """The recorded layouts by kind, 'same_as' resolved."""
    path = GOLDENS / 'snapshot_layouts.json'
    if not path.is_file():
        pytest.skip('snapshot_layouts.json not found (set MIMIC3D_GOLDENS to the folder that holds it)')
    layouts = json.loads(path.read_text())['snapshots']
    for layout in layouts.values():
        for key, module in layout['modules'].items():
            if 'same_as' in module:
                kind, _, same = module['same_as'].rpartition(':')
                layout['modules'][key] = layouts[kind]['modules'][same]
    return layouts


def set_augment_p(content, tensors):
    if content.get('augment_pipe') is not None:
        content['augment_pipe'].p.fill_(0.25)


def check_kind(folder, kind, layout, expected):
    """Write a snapshot, open it, convert it, open the result. expected: the globals, or None."""
    source, target = folder / 'network.pkl', folder / 'converted.pkl'
    tensors = files.write(source, layout, set_augment_p)
    if expected is not None:
        assert files.globals_of(source) == set(expected)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        networks = load_networks(source)
    files.assert_holds(networks, tensors)
    configs = {name: module.config for name, module in networks.items()}
    assert load_augment_p(source) == (0.25 if 'augment_pipe' in tensors else 0)
    del networks
    assert succeed(legacy.main, 'convert', source, target).output == f'{target}: {", ".join(configs)}\n'
    source.unlink()
    converted = load_networks(target)
    files.assert_holds(converted, tensors)
    assert load_augment_p(target) == (0.25 if 'augment_pipe' in tensors else 0)
    assert {name: module.config for name, module in converted.items()} == configs
    return configs


@pytest.mark.parametrize('kind', files.KINDS)
def test_snapshots_with_few_channels_open(tmp_path, kind):
    configs = check_kind(tmp_path, kind, files.kind_layout(kind, files.reduced), None)
    assert configs['G'].plane_order == kind.partition('/')[0]
    assert (configs['G'].branch_3d == 'residual') == kind.endswith('stage2') == ('D_patch' in configs)


@pytest.mark.slow
@pytest.mark.parametrize('kind', files.KINDS)
def test_snapshots_of_full_size_open(tmp_path, kind, recorded):
    configs = check_kind(tmp_path, kind, recorded[kind], recorded[kind]['globals'])
    assert configs['G'] == expected_config(kind)


def expected_config(kind):
    """What a preset of this project makes of the kind; EG3D's differ as its release does (docs/method.md, sections 2 and 3)."""
    release, data, *stage = kind.split('/')
    changes = {}
    if release == 'eg3d':
        changes = dict(aware='none', plane_order='eg3d')
        if data == 'afhq512':
            changes |= dict(precision='fp32', conv_clamp=None, sr_noise_mode='random')
        if data == 'shapenet128':
            changes |= dict(pose_conditioning=False)
    return generator_config(PRESETS[data], branch_3d='residual' if stage == ['stage2'] else 'none', **changes)


@pytest.mark.parametrize('kind', files.KINDS)
def test_published_arguments_give_the_presets(kind):
    arguments = files.KINDS[kind][0]
    class_name = files.STAGE2_CLASS if kind.endswith('stage2') else files.STAGE1_CLASS
    unknown = []
    assert published.read_generator_config(class_name, arguments, unknown) == expected_config(kind) and unknown == []


@pytest.mark.parametrize('kind', files.KINDS)
def test_the_description_here_is_the_recorded_one(kind, recorded):
    """All that a reader sees but the values inside a network; attributes and arguments there, taken over all kinds."""
    own, layout = files.kind_layout(kind), recorded[kind]
    assert sorted(own['top_level']) == sorted(layout['top_level'])
    for key, module in layout['modules'].items():
        if key == 'augment_pipe':
            continue
        mine = own['modules'][key]
        for table in ('parameters', 'buffers'):
            assert sorted(map(str, mine[table])) == sorted(
                str(item if len(item) == 4 else [*item, False]) for item in module[table]
            )
        classes = {entry['path']: entry for entry in mine['submodules']}
        assert classes.keys() == {entry['path'] for entry in module['submodules']}
        for entry in module['submodules']:
            ours = classes[entry['path']]
            name = entry['class'].rpartition('.')[2]
            assert ours['class'].rpartition('.')[2] == name and ours.get('persistent') == entry.get('persistent')
            assert entry.get('persistent') or ours['class'] == entry['class']
            attributes, arguments = (set(names.split()) for names in files.CLASSES[name])
            assert entry['attributes'].keys() <= attributes and (
                entry.get('init_kwargs', {}).keys() <= arguments or not entry['path']
            )
        assert classes['']['init_kwargs'] == module['submodules'][0]['init_kwargs']


def test_no_class_has_attributes_that_were_not_recorded(recorded):
    seen = {name: (set(), set()) for name in files.CLASSES}
    for layout in recorded.values():
        for key, module in layout['modules'].items():
            for entry in module['submodules'] if key != 'augment_pipe' else []:
                attributes, arguments = seen[entry['class'].rpartition('.')[2]]
                attributes.update(entry['attributes'])
                arguments.update(entry.get('init_kwargs', {}) if entry['path'] else {})
    assert seen == {name: tuple(set(names.split()) for names in parts) for name, parts in files.CLASSES.items()}
