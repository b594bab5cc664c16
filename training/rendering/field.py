"""The radiance field of tri-planes and a decoder."""

from training.rendering.planes import sample_planes


class TriplaneField:
    """Density and colours of points in space, from one or two sets of planes, whose features add up.

    Calling it is the specification; `training.rendering.fused` computes the same from its parts.

    planes: one or two tensors [N, K, C, H, W]; decoder: (features, colours) -> raw density, colours, with a method
    `effective_weights`; box_size: side of the cube that the planes cover, world units; axes: of every plane, such as
    ('xy', 'yz', 'zx'); colours: how many of the decoder's; precision: what the fused renderer may round to.
    """

    def __init__(self, planes, decoder, box_size, axes, colours, precision='fp32'):
        self.planes, self.decoder, self.box_size, self.axes = tuple(planes), decoder, box_size, tuple(axes)
        self.colours, self.precision = colours, precision

    def __call__(self, points):
        """points: [N, P, 3], world units -> raw density [N, P, 1], colours [N, P, colours]."""
        features = sum(sample_planes(planes, points, self.box_size, self.axes) for planes in self.planes)
        return self.decoder(features, self.colours)

    def of_image(self, index):
        """The field of one image of the batch."""
        planes = [planes[index:index + 1] for planes in self.planes]
        return TriplaneField(planes, self.decoder, self.box_size, self.axes, self.colours, self.precision)

    def mlp(self):
        """The decoder's layers as they act: hidden weight [H, C] and bias, output weight [1 + colours, H] and bias."""
        return self.decoder.effective_weights(self.colours)
