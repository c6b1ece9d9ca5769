"""open_clip's ``zero_shot_metadata``: OpenAI's prompts and class names for ImageNet, from the lists that Diptych ships.

Templates are callables here, as in open_clip: from a class name to a sentence. As text they are ``diptych.evaluate``'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from diptych.evaluate import class_set, load_templates

__all__ = ["IMAGENET_CLASSNAMES", "OPENAI_IMAGENET_TEMPLATES", "SIMPLE_IMAGENET_TEMPLATES"]


@dataclass(frozen=True)
class _Template:
    """A sentence with ``{}`` where the class name goes; unlike a lambda it can be sent to a worker process."""

    text: str

    def __call__(self, name: str) -> str:
        return self.text.replace("{}", str(name))


OPENAI_IMAGENET_TEMPLATES = tuple(map(_Template, load_templates("openai80")))
SIMPLE_IMAGENET_TEMPLATES = tuple(map(_Template, load_templates("openai7")))
IMAGENET_CLASSNAMES = tuple(class_set("imagenet").values())
