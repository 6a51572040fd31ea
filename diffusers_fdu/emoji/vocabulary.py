"""What the embedded model can draw, and how it is asked."""

CONCEPTS = (
    "dog", "cat", "rabbit", "fox", "panda", "tiger", "cow", "pig",
    "frog", "monkey", "penguin", "owl", "horse", "octopus", "turtle", "apple",
    "banana", "strawberry", "watermelon", "pineapple", "carrot", "hamburger", "pizza", "doughnut",
    "car", "rocket", "sailboat", "sunflower", "cactus", "mushroom", "guitar", "robot",
)  # fmt: skip
"""The 32 things the embedded model draws."""

STYLES = ("noto", "blob", "twitter", "fluent")
"""The four emoji sets it draws them in."""

BACKGROUNDS = ("white", "black", "red", "green", "blue", "yellow", "purple", "gray")
"""The eight plain colours it draws them on."""

SYNONYMS = {
    "dog": ("puppy",),
    "cat": ("kitten",),
    "rabbit": ("bunny",),
    "pig": ("hog",),
    "cow": ("cattle",),
    "frog": ("toad",),
    "monkey": ("ape",),
    "horse": ("pony",),
    "hamburger": ("burger",),
    "doughnut": ("donut",),
    "car": ("automobile",),
    "sailboat": ("yacht",),
    "rocket": ("spaceship",),
    "robot": ("android",),
}
"""Other words for some concepts, seen now and then in training."""


def caption(concept: str, style: str | None = None, background: str | None = None) -> str:
    """The prompt for a concept, and for a style and a background if they are given.

    Example:
        >>> from diffusers_fdu.emoji import caption
        >>> caption("owl", style="blob", background="red")
        'an owl emoji in blob style on a red background'
    """
    article = "an" if concept[0] in "aeiou" else "a"
    in_style = "" if style is None else f" in {style} style"
    on_background = "" if background is None else f" on a {background} background"
    return f"{article} {concept} emoji{in_style}{on_background}"
