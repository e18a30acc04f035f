"""Text contrast as defined by WCAG 2, measured on a rendered page."""

CONTRASTS = """
(() => {
  const parts = color => color.match(/[\\d.]+/g).map(Number);
  const channel = value => { value /= 255; return value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4; };
  const luminance = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
  const behind = element => {
    for (let each = element; each; each = each.parentElement) {
      const color = parts(getComputedStyle(each).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  const measure = (words, element, part) => {
    const [one, other] = [luminance(parts(getComputedStyle(element, part).color)), luminance(behind(element))];
    const ratio = (Math.max(one, other) + .05) / (Math.min(one, other) + .05);
    found.push({words: words.slice(0, 40), ratio: Math.round(ratio * 100) / 100});
  };
  for (const element of document.querySelectorAll("body *:not(script)")) {
    const words = [...element.childNodes].filter(each => each.nodeType === 3).map(each => each.data.trim()).join("");
    if (words) measure(words, element);
    if (element.placeholder) measure(element.placeholder, element, "::placeholder");
    const before = getComputedStyle(element, "::before").content;
    if (before !== "none") measure(before, element, "::before");
  }
  return found;
})()
"""
"""A script that returns each text with the ratio of its color to the background behind it."""
