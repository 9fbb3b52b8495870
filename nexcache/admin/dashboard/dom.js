// Elements from text. Nothing here takes markup: what a name holds stays what it says.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element. Attributes that are null or false are left out; functions become listeners. */
export function h(name, attributes = {}, ...children) {
  return put(document.createElement(name), attributes, children);
}

/** Make an element of a drawing. */
export function s(name, attributes = {}, ...children) {
  return put(document.createElementNS(SVG, name), attributes, children);
}

function put(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(key, value);
    else if (key === "style") Object.entries(value).forEach(([property, text]) => element.style.setProperty(property, text));
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Find an element by its id. */
export const $ = (id) => document.getElementById(id);

/** Replace the children, unless somebody is using one of them right now. */
export function fill(element, ...children) {
  const active = document.activeElement;
  const key = element.contains(active) ? active.dataset.key : undefined;
  element.replaceChildren(...children.flat().filter(Boolean));
  if (key !== undefined) element.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

/** Set text, if it is another: nothing is drawn anew that has not changed. */
export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}
