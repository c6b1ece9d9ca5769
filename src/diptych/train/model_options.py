"""Which model a run trains, and how it differs from its preset: the options behind the changes of ``changes``.

Declarations only; what each does stands in ``changes``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diptych.config import Count, Share


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it differs from its preset."""

    model: str = ""
    """Architecture (diptych models lists them), or local-dir:FOLDER; empty is that of --pretrained, without it ViT-B-32."""
    pretrained: str = ""
    """Weights to start from, in any format: a file, a folder, a run, a name of the catalog; empty starts from random weights."""
    force_image_size: Count = 0
    """Train at another image size, in pixels; learned positions are stretched to it. 0 leaves the architecture's own."""
    force_context_length: Count = 0
    """Train on captions of at most this many tokens; learned positions are stretched to it. 0 leaves the architecture's own."""
    force_quick_gelu: bool = False
    """Build the model with QuickGELU; weights that were certainly trained with another activation are refused."""
    image_mean: tuple[float, ...] = ()
    """Mean of the pixels in 0..1, three numbers or one for all colors; none takes the architecture's or the weights' own."""
    image_std: tuple[float, ...] = ()
    """Standard deviation of the pixels, likewise."""
    image_interpolation: Literal["", "bicubic", "bilinear"] = ""
    """How images are resized; empty takes the architecture's or the weights' own."""
    image_resize_mode: Literal["", "shortest", "longest", "squash"] = ""
    """What evaluation does with an image that is no square: cropped, padded with black, or squashed; likewise."""
    image_resize_to: Count = 0
    """To how many pixels evaluation resizes the short side before it crops (256 before 224 in DeCLIP's family); likewise."""
    lock_image: bool = False
    """Leave the image tower as it is, and train the text tower only (LiT)."""
    lock_image_unlocked_groups: Count = 0
    """With --lock-image: train its last so many groups: projection, last block with its norm, further blocks, embeddings."""
    lock_text: bool = False
    """Leave the text tower as it is."""
    lock_text_unlocked_layers: Count = 0
    """With --lock-text: train its last so many groups: projection, last block with its norm, further blocks, embeddings."""
    lock_patch_embedding: bool = False
    """Leave a ViT's embedding of patches as it is, also at random (MoCo v3; DeCLIP's family has it so)."""
    force_patch_dropout: Share = 0.0
    """Share of patches that a ViT leaves out of every training image (FLIP); another recipe, about twice as fast at 0.5."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    torchcompile: bool = False
    """Compile the blocks of both towers with torch.compile: fewer kernels on an accelerator; results differ in the last bits."""
    torchcompile_backend: str = ""
    """What compiles: a backend of torch.compile; empty is inductor."""
    cache_features: bool = False
    """With --lock-image: encode every image once, preprocessed as in evaluation, and never decode it again."""

    @property
    def locks_whole_image(self) -> bool:
        """Whether nothing of the image tower is trained."""
        return self.lock_image and not self.lock_image_unlocked_groups

    @property
    def locks_whole_text(self) -> bool:
        """Whether nothing of the text tower is trained."""
        return self.lock_text and not self.lock_text_unlocked_layers
