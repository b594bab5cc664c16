"""Pictures of results over training."""

from matplotlib.figure import Figure

from dnnlib.errors import UserError
from dnnlib.files import replacing


def plot_metrics(records, path):
    """Draw every metric against kimg, a panel each and a line per branch, as a PNG. The last result of a kimg counts.

    Raises UserError when no record says at which kimg it was measured, or when the file cannot be written.
    """
    curves = {}
    for record in records:
        if record.get('kimg') is not None:
            points = curves.setdefault(record['metric'], {}).setdefault(record.get('branch') or record['label'], {})
            points[record['kimg']] = record['value']
    if not curves:
        raise UserError('no result says at which kimg it was measured: evaluate snapshots of a run, or train with --metrics')
    figure = Figure(figsize=(4.8 * len(curves), 3.6), layout='constrained')
    for axes, (metric, branches) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items()):
        for branch, points in sorted(branches.items()):
            axes.plot(*zip(*sorted(points.items())), marker='o', markersize=3, label=branch)
        axes.set(title=metric, xlabel='kimg')
        axes.grid(alpha=0.3)
        axes.legend()
    try:
        with replacing(path) as file:
            figure.savefig(file, format='png', dpi=120)
    except OSError as error:
        raise UserError(f'{path} cannot be written ({error.strerror}): name another file with --output') from None
