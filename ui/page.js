// Runs once, when the page has loaded. Everything here outlives redraws: listeners sit on elements that stay.
(() => {
  if (window.rayzero) return;
  const root = document.documentElement;
  window.rayzero = {
    opacity(percent) { root.style.setProperty('--rz-opacity', percent / 100); },
    // On a phone the answer stands below the question.
    show() {
      const view = document.querySelector('#view');
      if (innerWidth <= 720 && view) view.scrollIntoView({behavior: 'smooth', block: 'start'});
    },
    save(file) {
      if (!file || !file.data) return;
      const link = document.createElement('a');
      link.href = `data:${file.type};base64,${file.data}`;
      link.download = file.name;
      link.click();
    },
  };

  // A number typed beside a slider counts once it lies in the slider's range: at first when it is complete.
  const beyond = (box) => box.matches?.('input[type=number][min][max]')
    && (box.value === '' || Number(box.value) < Number(box.min) || Number(box.value) > Number(box.max));
  document.addEventListener('input', (event) => { if (beyond(event.target)) event.stopImmediatePropagation(); }, true);
  document.addEventListener('change', ({target}) => {
    if (!beyond(target)) return;
    const range = target.closest('.block')?.querySelector('input[type=range]');
    const typed = target.value === '' && range ? range.value : target.value;
    target.value = Math.min(Math.max(Number(typed), Number(target.min)), Number(target.max));
    target.dispatchEvent(new Event('input', {bubbles: true}));
  }, true);

  // Gradio names its drop zones otherwise than it labels them, which speech control cannot follow.
  const rename = () => {
    for (const zone of document.querySelectorAll('button[aria-dropeffect]')) {
      const name = zone.innerText.replace(/\s+/g, ' ').trim();
      if (name && zone.getAttribute('aria-label') !== name) zone.setAttribute('aria-label', name);
    }
  };
  new MutationObserver(rename).observe(document.body, {childList: true, subtree: true});
  rename();

  // A tab is a place: the address names it, and the browser's back and forward move between tabs.
  const tabs = () => [...document.querySelectorAll('[role=tab]')];
  const named = (tab) => tab.textContent.trim().toLowerCase();
  const open = () => {
    const wanted = location.hash.slice(1) || 'query';
    const tab = tabs().find((one) => named(one) === wanted);
    if (tab && tab.getAttribute('aria-selected') !== 'true') tab.click();
  };
  document.addEventListener('click', (event) => {
    const tab = event.isTrusted && event.target.closest('[role=tab]');
    if (tab && location.hash.slice(1) !== named(tab)) history.pushState(null, '', `#${named(tab)}`);
  });
  window.addEventListener('popstate', open);
  open();
})
