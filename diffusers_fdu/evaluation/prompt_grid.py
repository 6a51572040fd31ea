"""A canvas: what a model can draw and a judge can name, as objects x styles or in one domain."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..data.templates import fill, plain

Cell = Mapping[str, str]
"""A name of each domain, such as {"object": "dog", "style": "noto"}."""


@dataclass(frozen=True)
class PromptGrid:
    """Names that pictures can show, by domain, and the prompts that ask for them.

    Args:
        domains: names by domain, such as {"object": ("dog", "cat"), "style": ("noto", "blob")}.
        template: a prompt with every domain in braces: "a {object} emoji in {style} style".
        alone: prompts for a name of one domain, with `{}` for it; the first is the plainest.
        synonyms: other words for some names.
        articles: put "an" for "a" in the template where a name begins with a vowel.

    Raises:
        ValueError: for a domain without names or prompts, a name that comes twice, or a template
            that does not hold exactly the domains.
    """

    domains: Mapping[str, Sequence[str]]
    template: str
    alone: Mapping[str, Sequence[str]]
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    articles: bool = True

    def __post_init__(self) -> None:
        found = re.findall(r"\{(\w*)\}", self.template)
        if sorted(found) != sorted(self.domains):
            raise ValueError(
                f"template {self.template!r} must hold each of the domains "
                f"{', '.join(self.domains)} once, in braces"
            )
        for domain, names in self.domains.items():
            if not names or len({plain(name) for name in names}) < len(names):
                raise ValueError(f"domain {domain!r} needs names, each once")
            if not self.alone.get(domain):
                raise ValueError(f"domain {domain!r} has no prompt in `alone`")
            for prompt in self.alone[domain]:
                if "{}" not in prompt:
                    raise ValueError(f"prompt {prompt!r} has no {{}} for the name")

    def prompt(self, cell: Cell) -> str:
        """The template with these names, and the articles that go with them.

        Args:
            cell: a name of each domain; "{}" leaves a place to fill.
        """
        text = self.template
        for domain, name in sorted(cell.items(), key=lambda item: item[1] == "{}"):
            slot = f"{{{domain}}}"
            if self.articles:
                text = fill(text.replace(slot, "{}"), name)
            else:
                text = text.replace(slot, name)
        return text

    def domain_of(self, name: str, kind: str = "object") -> str:
        """The domain that has a name; of others the one that is called like the kind.

        Args:
            name: of a target, which may be none of the canvas's own.
            kind: of the concept.

        Raises:
            ValueError: if no domain fits.
        """
        for domain, names in self.domains.items():
            if plain(name) in map(plain, names):
                return domain
        if kind in self.domains:
            return kind
        if len(self.domains) == 1:
            return next(iter(self.domains))
        raise ValueError(
            f"{name!r} is of kind {kind!r}, and the canvas has the domains "
            f"{', '.join(self.domains)}"
        )

    def others(self, domain: str, names: Sequence[str]) -> list[str]:
        """The names of a domain without these."""
        taken = set(map(plain, names))
        return [name for name in self.domains[domain] if plain(name) not in taken]

    def across(self, domain: str) -> list[Cell]:
        """Every combination of names of the other domains."""
        cells: list[Cell] = [{}]
        for other, names in self.domains.items():
            if other != domain:
                cells = [{**cell, other: name} for cell in cells for name in names]
        return cells

    def cell(self, domain: str, name: str, rest: Cell) -> Cell:
        """A name with names of the other domains, in the canvas's order."""
        return {d: name if d == domain else rest[d] for d in self.domains}


UNLEARNCANVAS = PromptGrid(
    {
        "object": tuple(
            "Architectures Bears Birds Butterfly Cats Dogs Fishes Flame Flowers Frogs Horses "
            "Human Jellyfish Rabbits Sandwiches Sea Statues Towers Trees Waterfalls".split()
        ),
        "style": tuple(
            name.replace("_", " ")
            for name in (
                "Abstractionism Artist_Sketch Blossom_Season Bricks Byzantine Cartoon Cold_Warm "
                "Color_Fantasy Comic_Etch Crayon Cubism Dadaism Dapple Defoliation Early_Autumn "
                "Expressionism Fauvism French Glowing_Sunset Gorgeous_Love Greenfield "
                "Impressionism Ink_Art Joy Liquid_Dreams Magic_Cube Meta_Physics Meteor_Shower "
                "Monet Mosaic Neon_Lines On_Fire Pastel Pencil_Drawing Picasso Pop_Art "
                "Red_Blue_Ink Rust Seed_Images Sketch Sponge_Dabbed Structuralism Superstring "
                "Surrealism Ukiyoe Van_Gogh Vibrant_Flow Warm_Love Warm_Smear Watercolor Winter"
            ).split()
        ),
    },
    "A {object} image in {style} style.",
    {"object": ("A {} image.", "a photo of {}"), "style": ("An image in {} style.",)},
    articles=False,
)
"""Objects and styles of the models of UnlearnCanvas (arXiv 2402.11846); the style
"Seed Images" is photos."""

CIFAR10 = PromptGrid(
    {
        "object": (
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        )
    },
    "a photo of the {object}",
    {
        "object": (
            "a photo of the {}",
            "a picture of a {}",
            "a {} on a sunny day",
            "a close-up of a {}",
            "a {} seen from far away",
            "a drawing of a {}",
            "a small {} in a garden",
            "a {} at night",
            "two people looking at a {}",
            "a {} on a white background",
        )
    },
    {
        "airplane": ("aircraft", "plane", "jet"),
        "automobile": ("car", "vehicle", "motorcar"),
        "bird": ("avian", "fowl", "winged creature"),
        "cat": ("feline", "kitty", "housecat"),
        "deer": ("hart", "stag", "doe"),
        "dog": ("canine", "pooch", "hound"),
        "frog": ("amphibian", "anuran", "tadpole"),
        "horse": ("equine", "steed", "mount"),
        "ship": ("vessel", "boat", "watercraft"),
        "truck": ("lorry", "rig", "hauler"),
    },
)
"""The ten classes and their synonyms on which MACE (arXiv 2403.06135) erases objects."""
