"""The losses of 200 steps of the demo preset, 100 in each stage: what a change that should change nothing must reproduce.

    python -m tests.loss_curve             compare with the recording
    python -m tests.loss_curve --record    write it anew

One process of one thread, fixed seed. On the machine of the recording all losses are bit-identical. Processors round
differently: elsewhere the first steps agree closely, and later ones drift apart.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORDING = ROOT / 'tests' / 'goldens' / 'loss_curve.json'
STAGE_KIMG = 0.8  # 100 steps of the preset's batch of 8
DATA = ['--images=200', '--seed=1']
TRAIN = [
    '--preset=demo',
    f'--stage1-kimg={STAGE_KIMG}',
    f'--stage2-kimg={STAGE_KIMG}',
    '--tick=0.008',
    '--snap=100000',
    '--gpus=1',
    '--threads=1',
    '--workers=0',
    '--seed=0',
]


def measure():
    """Train in a temporary folder. Returns {name of a loss: its values, a step each; None where a step has none}."""
    with tempfile.TemporaryDirectory() as folder:
        _script('dataset_tool.py', 'demo', f'--dest={folder}/data.zip', *DATA)
        _script('train.py', f'--data={folder}/data.zip', f'--run-dir={folder}/run', *TRAIN)
        steps = [json.loads(line) for line in (Path(folder) / 'run' / 'stats.jsonl').read_text().splitlines()]
    names = sorted({name for step in steps for name in step if name.startswith('loss/')})
    return {name: [step.get(name) for step in steps] for name in names}


def recorded():
    return json.loads(RECORDING.read_text())


def worst_difference(curve, expected, steps=slice(None)):
    """Largest difference of a loss in these steps, relative to its largest magnitude; infinite where other losses exist."""
    worst = 0.0
    for name in curve.keys() | expected.keys():
        pairs = list(zip(curve.get(name, [None]), expected.get(name, [None])))[steps]
        if any((new is None) != (old is None) for new, old in pairs):
            return float('inf')
        pairs = [pair for pair in pairs if None not in pair]
        scale = max((abs(old) for _, old in pairs), default=1.0)
        worst = max([worst, *(abs(new - old) / scale for new, old in pairs)])
    return worst


def _script(name, *arguments):
    subprocess.run([sys.executable, str(ROOT / name), *arguments], check=True, capture_output=True)


def main():
    curve = measure()
    if '--record' in sys.argv:
        RECORDING.write_text(json.dumps(curve, indent=0) + '\n')
        return True
    same = curve == recorded()
    print(
        'every loss of every step is bit-identical to the recording'
        if same
        else f'not bit-identical: differs by up to {worst_difference(curve, recorded()):.1e} of a loss'
    )
    return same


if __name__ == '__main__':
    sys.exit(0 if main() else 1)
