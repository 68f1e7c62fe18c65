"""Invented pages in the shape of blogs and news sites."""

import json
import random

WORDS = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had
an they which one you were her all she there would their we him been has when who will more no if
out so said what up its about into than them can only other new some could time these two may then
do first any my now such like our over man me even most made after also did many before must through
back years where much your way well down should because each just those people how too little state
good very make world still own see men work long get here between both life being under never day
same another know while last might us great old year off come since
""".split()  # noqa: SIM905


class Site:
    """Pages of one invented site; `rng` decides lengths, words and pictures."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)

    def words(self, n: int) -> str:
        return " ".join(self.rng.choices(WORDS, k=n)).capitalize()

    def paragraph(self) -> str:
        text = self.words(self.rng.randint(25, 90))
        if self.rng.random() < 0.5:
            text += f' <a href="/a/{self.rng.randint(1, 999)}">{self.words(3)}</a>, {self.words(12)}'
        if self.rng.random() < 0.3:
            text += f" <em>{self.words(2)}</em> {self.words(9)}"
        return f"<p>{text}.</p>\n"

    def figure(self, n: int) -> str:
        small, large = f"/media/{n}-640.jpg 640w", f"/media/{n}-1280.jpg 1280w"
        return (
            f'<figure class="wp-block-image size-large"><img loading="lazy" decoding="async" width="1280" '
            f'height="853" src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" data-src="/media/{n}.jpg" '
            f'data-srcset="{small}, {large}" alt="{self.words(6)}" class="wp-image-{n} lazyload"/>'
            f"<figcaption>{self.words(9)}.</figcaption></figure>\n"
        )

    def menu(self, n: int) -> str:
        items = "".join(
            f'<li id="menu-item-{k}" class="menu-item menu-item-type-taxonomy menu-item-{k}">'
            f'<a href="/topic/{k}/"><span>{self.words(2)}</span></a></li>\n'
            for k in range(n)
        )
        return f'<nav class="main-navigation" aria-label="Primary"><ul class="menu">{items}</ul></nav>\n'

    def icons(self, n: int) -> str:
        path = "M12 2.04c-5.5 0-9.96 4.46-9.96 9.96 0 4.99 3.66 9.12 8.44 9.88v-6.99H7.9v-2.89h2.54V9.8"
        icon = f'<svg width="24" height="24" viewBox="0 0 24 24" aria-hidden="true"><path d="{path}"/></svg>'
        links = "".join(f'<li><a href="/share/{k}" aria-label="Share">{icon}</a></li>' for k in range(n))
        return f'<div class="share-buttons"><ul>{links}</ul></div>\n'

    def cards(self, n: int) -> str:
        cards = "".join(
            f'<div class="card"><a href="/p/{k}"><img src="/thumb/{k}.jpg" width="300" height="200" alt="">'
            f"</a><h3><a href='/p/{k}'>{self.words(6)}</a></h3><span>{self.words(3)}</span></div>\n"
            for k in range(n)
        )
        return f'<section class="related-posts"><h2>Related</h2>{cards}</section>\n'

    def comments(self, n: int) -> str:
        entries = "".join(
            f'<li class="comment"><div class="comment-meta"><b>{self.words(2)}</b> <time>2 May</time></div>'
            f"<p>{self.words(self.rng.randint(8, 60))}.</p><a href='?reply={k}'>Reply</a></li>\n"
            for k in range(n)
        )
        return f'<ol class="comment-list">{entries}</ol>\n'

    def page(self, size: int) -> bytes:
        """A page of about `size` bytes: about half of it article, the rest what such pages carry."""
        rng, body, n = self.rng, [], 0
        while sum(map(len, body)) < size * 0.5:
            n += 1
            body.append(self.paragraph())
            if n % 4 == 1:
                body.append(self.figure(rng.randint(1, 9999)))
            if n % 5 == 0:
                body.append(f"<h2>{self.words(5)}</h2>\n")
            if n % 9 == 0:
                items = "".join(f"<li>{self.words(8)}</li>\n" for _ in range(4))
                body.append(f"<ul>\n{items}</ul>\n")
        part = size // 1000
        ld = json.dumps(
            {"@type": "NewsArticle", "headline": self.words(8), "keywords": self.words(10 + part)}
        )
        script = "!function(e,t){for(var n=0;n<t.length;n++)e.push(t[n])}(window.q||[],[1,2,3]);" * (
            1 + part // 3
        )
        style = ".wp-block-image{margin:0 0 1em}.menu>li{display:inline}" * (2 + part // 4)
        return (
            f'<!DOCTYPE html>\n<html lang="en-US"><head><meta charset="utf-8"><title>{self.words(6)}</title>'
            f'<meta name="description" content="{self.words(20)}"><link rel="canonical" href="/p/{size}">'
            f'<style>{style}</style><script type="application/ld+json">{ld}</script></head>\n'
            f'<body class="single post-template"><header class="site-header"><a href="/">{self.words(2)}</a>'
            f'{self.menu(4 + part // 2)}</header>\n<main id="content"><article class="post">'
            f"<h1>{self.words(8)}</h1>"
            f'<div class="entry-meta">By <a href="/author/x">{self.words(2)}</a> <time>1 May</time></div>\n'
            f'<div class="entry-content">{"".join(body)}</div>'
            f"{self.icons(5)}</article>{self.comments(part // 4)}"
            f'</main>\n<aside class="sidebar">{self.cards(3 + part // 8)}</aside>{self.cards(3)}'
            f'<footer class="site-footer"><div>{self.menu(part // 3)}<p>{self.words(20)}</p></div></footer>\n'
            f"<script>{script}</script></body></html>"
        ).encode()
