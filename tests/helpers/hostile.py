"""Names that try to be more than text on a page."""

HOSTILE = [
    '---\nlicense: mit\n---\n# "dog"',
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "[click](https://evil.example) ![x](y.png) www.evil.example",
    "a | b || `code` ``` **bold** _it_ ~~s~~ $x$ @user #1 {{ 7*7 }} {% raw %}",
    "'single' \"double\" \\back\\ : # & * ? - ! % @",
    "🦊 fox 👩‍🚀 \u202egnp.exe \x00\x1b[31m\u2028line \ud800 end",
    "null",
    "- a\n- b",
    "x" * 3000,
]
