"""Published results as rows of tables: the paper's tables 1 to 3, and CGS-GAN's FID3D."""

# FID, PSNR_mv, SSIM_mv as printed in the paper; left out: not given.
DATA = {'ffhq256': 'FFHQ 256', 'ffhq512': 'FFHQ 512', 'cats256': 'Cats 256', 'cats512': 'Cats 512'}
FID, FID3D = 'fid50k_full', 'fid3d50k_full'
METRICS = (FID, 'psnr_mv', 'ssim_mv')
_TABLE1 = {
    'StyleSDF': {'ffhq256': (11.5,), 'ffhq512': (11.2,), 'cats512': (7.91,)},
    'VolumeGAN': {'ffhq256': (9.10, 33.6, 0.926)},
    'StyleNeRF': {'ffhq256': (8.00, 31.9, 0.915), 'ffhq512': (7.80, 30.9, 0.843)},
    'EG3D': {'ffhq256': (4.80, 34.0, 0.928), 'ffhq512': (4.70, 32.4, 0.861), 'cats256': (3.88,), 'cats512': (2.77,)},
    'Mimic3D 2D branch': {'ffhq256': (3.91, 35.7, 0.938), 'ffhq512': (4.14, 33.3, 0.891), 'cats256': (3.41,), 'cats512': (2.72,)},
    'GRAM': {'ffhq256': (13.8, 38.0, 0.966), 'cats256': (13.4,)},
    'GRAM-HD': {'ffhq256': (10.4, 36.5, 0.955), 'cats512': (7.67,)},
    'GMPI': {'ffhq256': (11.4, 39.8, 0.977), 'ffhq512': (8.29, 39.0, 0.961), 'cats512': (7.79,)},
    'EpiGRAF': {'ffhq256': (9.71,), 'ffhq512': (9.92, 37.3, 0.949), 'cats256': (6.93,)},
    'VoxGRAF': {'ffhq256': (9.60, 37.2, 0.960), 'cats256': (9.60,)},
    'Mimic3D 3D branch': {'ffhq256': (5.14, 39.3, 0.974), 'ffhq512': (5.37, 37.8, 0.955), 'cats256': (4.14,), 'cats512': (4.29,)},
}

# Table 2: FID of the 3D branch. Table 3: FID of the 2D and the 3D branch, millions of parameters of E and the mapping network, GB
# to make P^c; None: not given.
_TABLE2 = {'A': 30.6, 'B': 29.9, 'C': 9.29, 'D': 22.8, 'E': 5.14}
_TABLE3 = {
    'none': (4.80, 6.71, 29.0, 2.3),
    'latent': (None, None, 111.7, 11.6),
    'triplane': (4.14, None, 32.6, 2.4),
    'stream': (3.91, 5.14, 32.6, 2.4),
}
_NOT_TRAINED = {'latent': ['out of memory in the paper']}

# FID and FID3D at FFHQ 512, as printed in CGS-GAN's README.
_OTHER_PROTOCOL = {'GSGAN': (5.02, 10.50), 'GGHead': (4.34, 7.90), 'CGS-GAN': (4.94, 4.94)}

# Where the rows of tables come from, their 'source'.
MEASURED, OTHER_SOURCE = 'measured', 'CGS-GAN, another protocol'
TABLE1, TABLE2, TABLE3 = 'published', 'published, table 2', 'published, table 3'

CHOICES = (*DATA, 'table1', 'table2', 'table3', 'all', 'none')


def published_rows(choice):
    """The published results of one of CHOICES: a data set of table 1, which CGS-GAN's stand beside, a table, all or none."""
    return [
        *(row for key in DATA if choice in (key, 'table1', 'all') for row in _table1(key)),
        *(_other_protocol() if choice in ('ffhq512', 'table1', 'all') else ()),
        *(_table2() if choice in ('table2', 'all') else ()),
        *(_table3() if choice in ('table3', 'all') else ()),
    ]


def _table1(key):
    return [
        {'method': method, 'data': DATA[key], 'source': TABLE1, **dict(zip(METRICS, by_data[key]))}
        for method, by_data in _TABLE1.items()
        if key in by_data
    ]


def _other_protocol():
    return [
        {'method': method, 'data': DATA['ffhq512'], 'source': OTHER_SOURCE, FID: fid, FID3D: fid3d}
        for method, (fid, fid3d) in _OTHER_PROTOCOL.items()
    ]


def _table2():
    return [{**_ablation(TABLE2, '3d'), FID: fid, 'table2': row} for row, fid in _TABLE2.items()]


def _table3():
    return [
        {
            **_ablation(TABLE3, branch),
            FID: fid,
            'table3': row,
            'parameters_m': parameters,
            'memory_gb': memory,
            'differences': _NOT_TRAINED.get(row),
        }
        for row, (fid_2d, fid_3d, parameters, memory) in _TABLE3.items()
        for branch, fid in (('2d', fid_2d), ('3d', fid_3d))
    ]


def _ablation(source, branch):
    return {'method': f'Mimic3D {branch.upper()} branch', 'data': DATA['ffhq256'], 'source': source, 'branch': branch}
