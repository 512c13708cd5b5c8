// Tables that scroll can be reached with the keyboard, also those that a script draws later.
const reachable = () => {
  for (const body of document.querySelectorAll(".dt-scroll-body:not([tabindex])")) {
    body.tabIndex = 0;
    body.setAttribute("role", "region");
    body.setAttribute("aria-label", "Table, scrolls sideways");
  }
};
new MutationObserver(reachable).observe(document.documentElement, { childList: true, subtree: true });
