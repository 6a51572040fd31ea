from __future__ import annotations

import re

from diffusers_fdu.utils.markup import cleaned, escaped, slug


def test_slugs_are_short_and_differ() -> None:
    assert slug("Mickey  Mouse!") == slug("mickey-mouse") == "mickey-mouse"
    names = ["🦊", "🐶", "x" * 50, "x" * 51, "皮卡丘", "Ångström", "a_b"]
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(names) and max(map(len, slugs)) <= 40
    assert all(re.fullmatch(r"[\w-]+", each) for each in slugs)
    assert slug("皮卡丘") == "皮卡丘" and slug("Ångström") == "ångström"


def test_text_is_cleaned_and_escaped() -> None:
    assert cleaned(" a\n\tb\u202e \x00c\ud800 ") == "a b c"
    assert cleaned("👩‍🚀") == "👩‍🚀"
    assert len(cleaned("y" * 500)) == 100
    assert escaped("www.x.y https://z a@b") == "www\\.x.y https\\://z a\\@b"
    assert escaped("a|b *c* snake_case <i> St. Basil") == (
        "a\\|b \\*c\\* snake_case \\<i> St. Basil"
    )
    assert [escaped(text) for text in ("> a", "- a", "-1", "a -> b")] == [
        "\\> a",
        "\\- a",
        "-1",
        "a -> b",
    ]
