"""Meshes to files, in world units, +y up (the axes of both the world and GLB); PLY, GLB and OBJ have colours, STL has none."""

from pathlib import Path

import numpy as np
from trimesh.exchange.gltf import export_glb
from trimesh.exchange.obj import export_obj
from trimesh.exchange.ply import export_ply
from trimesh.exchange.stl import export_stl

from dnnlib.files import replacing


def save_mesh(mesh, path):
    """Write a trimesh.Trimesh with colours at its vertices; the path's suffix, one of FORMATS, says how.

    A write that is broken off leaves no file under `path`. Raises ValueError for other suffixes.
    """
    suffix = Path(path).suffix
    if suffix.lstrip('.') not in FORMATS:
        raise ValueError(f'a mesh is written as one of .{", .".join(FORMATS)}, not {suffix!r}')
    with replacing(path) as file:
        file.write(FORMATS[suffix.lstrip('.')](mesh))


def _encode_glb(mesh):
    """GLB bytes as the glTF specification wants them: linear vertex colours and a matt, not a metallic, material."""
    plain = mesh.copy()
    plain.visual = type(mesh.visual)()
    plain.vertex_attributes['_LINEAR'] = srgb_to_linear(mesh.visual.vertex_colors)
    return export_glb(plain, include_normals=True, tree_postprocessor=_finish_tree)


def _finish_tree(tree):
    tree['materials'] = [{'pbrMetallicRoughness': {'metallicFactor': 0.0, 'roughnessFactor': 1.0}}]
    for mesh in tree['meshes']:
        for primitive in mesh['primitives']:
            primitive['material'] = 0
            # The exporter's own colours are 8-bit, too coarse in the dark for linear values: floats replace them.
            primitive['attributes']['COLOR_0'] = primitive['attributes'].pop('_LINEAR')


def srgb_to_linear(colors):
    """Linear float32 [V, 4] in [0, 1] of 8-bit sRGB colours with alpha [V, 4] (IEC 61966-2-1)."""
    values = colors.astype(np.float32) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.concatenate([linear[:, :3], values[:, 3:]], axis=1).astype(np.float32)


def _encode_obj(mesh):
    """OBJ bytes whose lines `v` have 8-bit sRGB colours behind the position, in [0, 1]: what MeshLab, Blender and others read."""
    return export_obj(mesh, include_normals=True, include_texture=False, header=None).encode()


FORMATS = {  # suffix: the bytes of a mesh
    'ply': lambda mesh: export_ply(mesh, vertex_normal=True),
    'glb': _encode_glb,
    'obj': _encode_obj,
    'stl': export_stl,
}
