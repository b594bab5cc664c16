"""Sample grids: the same latents and cameras, drawn again and again while training."""

import torch

from torch_utils import distributed
from torch_utils.images import depth_to_image, to_uint8
from torch_utils.random import BatchRandom


def default_grid(resolution):
    """Columns and rows that fill about a 4K picture, within reason."""
    return min(max(3840 // resolution, 4), 15), min(max(2160 // resolution, 2), 8)


class SampleGrid:
    """The same latents and cameras, drawn again and again while training."""

    def __init__(self, dataset, config, device):
        self.columns, rows = config.grid_size or default_grid(dataset.resolution)
        self.count = self.columns * rows
        random = BatchRandom.keyed((config.seed, 0), self.count)
        self.indices = random.integers(len(dataset))
        self.z = random.normal(config.generator.z_dim).to(device)
        self.c = dataset.labels[self.indices].to(device)
        self.batch = config.batch_per_pass

    def reals(self, dataset):
        """The images whose cameras the samples are seen from, uint8 [N, 3, H, W]."""
        return torch.stack([dataset[i][0] for i in self.indices.tolist()])

    @torch.no_grad()
    def draw(self, G):
        """8-bit images {name: [N, 3, H, W]} of the 2D branch, its raw render, the depth, and of a 3D branch if there is one.

        Every process must call it and draws its share; the first one gets them all, the others None.
        """
        share, mine = torch.arange(self.count).tensor_split(distributed.world_size())[distributed.rank()], {}
        for some in share.split(self.batch):
            for name, images in self._render(G, self.z[some], self.c[some]).items():
                mine.setdefault(name, []).append(to_uint8(images).cpu())
        shares = distributed.gather({name: torch.cat(parts) for name, parts in mine.items()})
        return shares and {name: torch.cat([share[name] for share in shares]) for name in mine}

    @staticmethod
    def _render(G, z, c):
        ws = G.mapping(z, c)
        planes = G.planes(ws, noise_mode='const')
        out = G.render(planes, c, '2d', ws=ws, sampling='deterministic')
        pictures = {'2d': out['image'], 'raw': out['image_raw'], 'depth': depth_to_image(out['image_depth'])}
        if G.config.has_3d_branch:
            out = G.render(planes, c, '3d', sampling='deterministic')
            pictures.update({'3d': out['image'], 'depth': depth_to_image(out['image_depth'])})
        return pictures
