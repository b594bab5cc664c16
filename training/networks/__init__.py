"""The networks, by their names in the paper (section 3; figure 4 for the stream) and in docs/method.md, section 3.

E, O_k      triplane.TriplaneBackbone, its blocks        M      generator.Decoder
T_k, B_k    its stream of triplane.PlaneBlock            S2D    superresolution.Superresolution
alignment   aware_conv.align_planes                      D2D    discriminator.DualDiscriminator
S3D         triplane.ResidualPlanes                      D3D    discriminator.PatchDiscriminator
"""
