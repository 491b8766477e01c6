// What a page lacks for people who do not see it well, or at all: a list of sentences. Rules after WCAG 2.1 AA.
() => {
  const found = [];
  const where = (element) => element.outerHTML.slice(0, 120);
  const visible = (element) => element.checkVisibility({ visibilityProperty: true }) && !element.closest(".hidden, .skip");
  const named = (element) =>
    (element.getAttribute("aria-label") || element.title || element.textContent || "").trim() ||
    [...(element.labels || [])].some((label) => label.textContent.trim()) || element.getAttribute("aria-labelledby");
  for (const control of document.querySelectorAll("input:not([type=hidden]), select, textarea, button, a[href], summary")) {
    if (visible(control) && !named(control)) found.push(`has no name: ${where(control)}`);
  }
  for (const picture of document.querySelectorAll("img")) {
    if (!picture.hasAttribute("alt")) found.push(`has no text: ${where(picture)}`);
  }
  for (const plot of document.querySelectorAll("svg")) {
    if (plot.getAttribute("role") !== "img" || !plot.getAttribute("aria-label")) found.push(`plot without words: ${where(plot)}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) found.push(`id twice: ${id}`);
  for (const element of document.querySelectorAll("[aria-labelledby]")) {
    if (!document.getElementById(element.getAttribute("aria-labelledby"))) found.push(`names itself after nothing: ${where(element)}`);
  }
  if (!document.documentElement.lang) found.push("no language");
  if (document.querySelectorAll("h1").length !== 1) found.push("not one h1");
  if (document.querySelectorAll("main").length !== 1) found.push("not one main");
  let level = 1;
  for (const heading of document.querySelectorAll("h1, h2, h3, h4")) {
    const own = Number(heading.tagName[1]);
    if (own > level + 1) found.push(`heading skips a level: ${where(heading)}`);
    level = own;
  }

  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const back = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] > 0.99) return colour;
    }
    return [255, 255, 255, 1];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((part) => {
      const share = part / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || element.closest("svg, script, option") || !visible(element)) continue;
    if (element.closest("button:disabled")) continue;
    const style = getComputedStyle(element);
    const [one, other] = [light(rgba(style.color)), light(back(element))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) found.push(`contrast ${ratio.toFixed(2)}: ${where(element)}`);
  }
  return [...new Set(found)];
}
