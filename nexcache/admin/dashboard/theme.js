// Before the first paint, so that the page does not flash in the other theme.
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    let chosen = null;
    try { chosen = localStorage.getItem("nexcache.theme"); } catch { /* storage may be off */ }
    root.dataset.theme = chosen ?? (system.matches ? "dark" : "light");
  };
  apply();
  system.addEventListener("change", () => { apply(); dispatchEvent(new Event("theme")); });
  window.toggleTheme = () => {
    const next = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("nexcache.theme", next); } catch { /* as above */ }
    root.dataset.theme = next;
    dispatchEvent(new Event("theme"));
  };
})();
