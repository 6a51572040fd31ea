"""Prompt grids: the names that a model can draw and a judge can tell apart, and their prompts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

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
        synonyms: other words for some of the names.
        articles: whether the template's "a" becomes "an" before a name that begins with a vowel.

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
        if sorted(re.findall(r"\{(\w*)\}", self.template)) != sorted(self.domains):
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
        """The template with the names of a cell and their articles; the name "{}" stays a slot."""
        text = self.template
        # A "{}" goes in last, or the next name would be filled into it.
        for domain, name in sorted(cell.items(), key=lambda item: item[1] == "{}"):
            slot = f"{{{domain}}}"
            if self.articles:
                text = fill(text.replace(slot, "{}"), name)
            else:
                text = text.replace(slot, name)
        return text

    def domain_of(self, name: str, kind: str = "object") -> str:
        """A name's domain, or the one called like its kind; ValueError if there is neither."""
        for domain, names in self.domains.items():
            if plain(name) in map(plain, names):
                return domain
        if kind in self.domains:
            return kind
        if len(self.domains) == 1:
            return next(iter(self.domains))
        raise ValueError(
            f"{name!r} is of kind {kind!r}, and the prompt grid has the domains "
            f"{', '.join(self.domains)}"
        )

    def others(self, domain: str, names: Sequence[str]) -> list[str]:
        """The names of a domain without these."""
        excluded = set(map(plain, names))
        return [name for name in self.domains[domain] if plain(name) not in excluded]

    def across(self, domain: str) -> list[Cell]:
        """Every combination of names of the other domains."""
        others = {d: names for d, names in self.domains.items() if d != domain}
        return [dict(zip(others, names, strict=True)) for names in product(*others.values())]

    def cell(self, domain: str, name: str, rest: Cell) -> Cell:
        """A name with names of the other domains, in the grid's order."""
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
    {"object": tuple("airplane automobile bird cat deer dog frog horse ship truck".split())},
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
