"""Where weights were released first, outside of the hub: addresses that open_clip's ``get_pretrained_url`` gives. Facts only.

OpenAI's and those of ``diptych.weights.catalog`` that name their origin are not repeated here.
"""

from __future__ import annotations

_LAION = "https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/"
_META = "https://dl.fbaipublicfiles.com/MMPT/metaclip/"
_FIRST = {
    ("RN50", "yfcc15m"): f"{_LAION}rn50-quickgelu-yfcc15m-455df137.pt",
    ("RN50", "cc12m"): f"{_LAION}rn50-quickgelu-cc12m-f000538c.pt",
    ("RN101", "yfcc15m"): f"{_LAION}rn101-quickgelu-yfcc15m-3e04b30e.pt",
    ("ViT-B-32", "laion400m_e31"): f"{_LAION}vit_b_32-quickgelu-laion400m_e31-d867053b.pt",
    ("ViT-B-32", "laion400m_e32"): f"{_LAION}vit_b_32-quickgelu-laion400m_e32-46683a32.pt",
    ("ViT-B-32", "laion2b_e16"): f"{_LAION}vit_b_32-laion2b_e16-af8dbd0c.pth",
    ("ViT-B-16", "laion400m_e31"): f"{_LAION}vit_b_16-laion400m_e31-00efa78f.pt",
    ("ViT-B-16", "laion400m_e32"): f"{_LAION}vit_b_16-laion400m_e32-55e67d44.pt",
    ("ViT-L-14", "laion400m_e31"): f"{_LAION}vit_l_14-laion400m_e31-69988bb6.pt",
    ("ViT-L-14", "laion400m_e32"): f"{_LAION}vit_l_14-laion400m_e32-3d133497.pt",
    ("ViT-B-32", "metaclip_400m"): f"{_META}b32_400m.pt",
    ("ViT-B-32", "metaclip_fullcc"): f"{_META}b32_fullcc2.5b.pt",
    ("ViT-B-16", "metaclip_400m"): f"{_META}b16_400m.pt",
    ("ViT-B-16", "metaclip_fullcc"): f"{_META}b16_fullcc2.5b.pt",
    ("ViT-L-14", "metaclip_400m"): f"{_META}l14_400m.pt",
    ("ViT-L-14", "metaclip_fullcc"): f"{_META}l14_fullcc2.5b.pt",
    ("ViT-H-14", "metaclip_fullcc"): f"{_META}h14_fullcc2.5b.pt",
    ("ViT-H-14", "metaclip_altogether"): f"{_META}h14_v1.2_altogether.pt",
    ("ViT-bigG-14", "metaclip_fullcc"): f"{_META}G14_fullcc2.5b.pt",
}


def first_release(model: str, tag: str) -> str:
    """The address, for a name with or without -quickgelu; "" where there is none."""
    return _FIRST.get((model.removesuffix("-quickgelu"), tag), "")
