// Shows HTML that the server escaped, and turns clicks on its links into moves of the page, without loading it anew.
// Nothing here makes HTML from data: parts are replaced as a whole, choices are marked by class.

export default function (component) {
  const { parentElement, data, setTriggerValue } = component;
  const root = parentElement.querySelector(".k");
  root.classList.remove("busy");
  root.removeAttribute("aria-busy");
  root.lang = data.lang;

  const old = root.kisekiParts ?? {};
  for (const [name, html] of Object.entries(data.parts)) {
    let part = root.querySelector(`:scope [data-part="${name}"]`);
    if (!part) continue;
    if (old[name] !== html || part.childNodes.length === 0) {
      part.innerHTML = html;
      part.scrollTop = 0;
    }
  }
  root.kisekiParts = data.parts;
  if (window.location.href !== root.kisekiFrom) window.clearTimeout(root.kisekiTimer);
  choose(root, data.chosen ?? [], "sel");
  choose(root, data.of_document ?? [], "ofdoc");

  const go = (href) => {
    root.classList.add("busy");
    root.setAttribute("aria-busy", "true");
    const before = window.location.href;
    setTriggerValue("go", href);
    // A click while the page is being put together can be lost: then go there the slow way. A click that was not must not
    // be made again, when a later one leads back to where it was made.
    window.clearTimeout(root.kisekiTimer);
    root.kisekiFrom = before;
    root.kisekiTimer = window.setTimeout(() => {
      root.classList.remove("busy");
      root.removeAttribute("aria-busy");
      const wanted = new URL(href, before).href;
      if (window.location.href === before && wanted !== before) window.location.assign(wanted);
    }, 5000);
  };

  root.onclick = (event) => {
    if (event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    const link = event.target.closest("a[data-go]");
    if (link) {
      event.preventDefault();
      complete(link);
      go(link.getAttribute("href"));
      return;
    }
    const copy = event.target.closest("button[data-copy]");
    if (copy) {
      const text = copy.dataset.copy === "link" ? linkHere(copy.dataset.gen) : root.querySelector(copy.dataset.copy).textContent;
      const done = () => { copy.textContent = copy.dataset.done; };
      const byHand = () => window.prompt(copy.textContent, text);
      navigator.clipboard ? navigator.clipboard.writeText(text).then(done, byHand) : byHand();
      return;
    }
    const chart = event.target.closest("svg[data-pick]");
    if (chart) go(chart.dataset.pick.replaceAll("%7Bstep%7D", Math.round(stepAt(chart, event))));
  };

  root.onpointerover = (event) => complete(event.target.closest("a[data-go]"));
  if (!root.kisekiFocus) root.addEventListener("focusin", (root.kisekiFocus = root.onpointerover));

  root.onpointerdown = (event) => {
    const chart = event.target.closest("svg[data-brush]");
    if (!chart || event.button) return;
    const from = stepAt(chart, event);
    const box = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    box.setAttribute("class", "brush");
    box.setAttribute("y", 0);
    box.setAttribute("height", chart.viewBox.baseVal.height);
    let to = from;
    const move = (moved) => {
      to = stepAt(chart, moved);
      if (Math.abs(xOf(chart, to) - xOf(chart, from)) < 6) return;
      if (!box.parentNode) chart.append(box);
      box.setAttribute("x", xOf(chart, Math.min(from, to)));
      box.setAttribute("width", Math.abs(xOf(chart, to) - xOf(chart, from)));
    };
    const up = () => {
      window.removeEventListener("pointermove", move);
      window.removeEventListener("pointerup", up);
      if (!box.parentNode) return;
      box.remove();
      const ends = [Math.floor(Math.min(from, to)), Math.ceil(Math.max(from, to))];
      chart.addEventListener("click", (click) => { click.preventDefault(); click.stopPropagation(); }, { capture: true, once: true });
      go(chart.dataset.brush.replaceAll("%7Bfirst%7D", ends[0]).replaceAll("%7Blast%7D", ends[1]));
    };
    window.addEventListener("pointermove", move);
    window.addEventListener("pointerup", up);
  };
}

// A link says z=* for the packed text of the page that it stands on; before it is used, it gets the text itself.
function complete(link) {
  if (!link) return;
  const there = new URL(link.getAttribute("href"), window.location.href);
  if (there.searchParams.get("z") !== "*") return;
  there.searchParams.set("z", new URL(window.location.href).searchParams.get("z") ?? "");
  link.setAttribute("href", "./" + there.search);
}

// The URL, and the generation that it was looked at in.
function linkHere(generation) {
  const here = new URL(window.location.href);
  if (generation) here.searchParams.set("gen", generation);
  return here.href;
}

function choose(root, chosen, name) {
  for (const piece of root.querySelectorAll(`a.m.${name}`)) piece.classList.remove(name);
  if (chosen.length === 0) return;
  const wanted = new Set(chosen.map(String));
  for (const piece of root.querySelectorAll("a.m")) {
    if (piece.dataset.s.split(" ").some((span) => wanted.has(span))) piece.classList.add(name);
  }
}

function scale(chart) {
  const left = Number(chart.dataset.left);
  return [left, chart.viewBox.baseVal.width - left - Number(chart.dataset.right), Number(chart.dataset.first), Number(chart.dataset.after)];
}

function stepAt(chart, event) {
  const [left, width, first, after] = scale(chart);
  const box = chart.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
  return first + Math.min(1, Math.max(0, (x - left) / width)) * (after - first);
}

function xOf(chart, step) {
  const [left, width, first, after] = scale(chart);
  return left + (width * (step - first)) / Math.max(1, after - first);
}
