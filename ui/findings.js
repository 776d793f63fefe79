// Words proposed for the line that is being typed; any other text stays possible.
const MOST = 7;
let words = [], shown = [], chosen = -1;
const area = () => document.querySelector('#findings textarea');

const read = () => { try { words = JSON.parse(props.value || '[]'); } catch { words = []; } };
const line = (box) => {
  const start = box.value.lastIndexOf('\n', box.selectionStart - 1) + 1;
  const end = box.value.indexOf('\n', box.selectionStart);
  return [start, end < 0 ? box.value.length : end];
};
const list = document.createElement('ul');
list.id = 'rz-proposed';
list.className = 'rz-proposed';
list.setAttribute('role', 'listbox');
list.setAttribute('aria-label', 'Proposed findings');
list.hidden = true;

const close = () => {
  list.hidden = true;
  chosen = -1;
  const box = area();
  if (box) box.removeAttribute('aria-activedescendant');
};
const mark = () => {
  [...list.children].forEach((item, i) => item.setAttribute('aria-selected', String(i === chosen)));
  if (chosen >= 0) area().setAttribute('aria-activedescendant', `rz-proposed-${chosen}`);
};
const propose = () => {
  const box = area();
  const [start, end] = line(box);
  const typed = box.value.slice(start, end).trim().toLowerCase();
  const used = new Set(box.value.toLowerCase().split('\n').map((one) => one.trim()));
  const fits = (word) => word.toLowerCase().includes(typed) && !used.has(word.toLowerCase());
  const first = (word) => (word.toLowerCase().startsWith(typed) ? 0 : 1);
  shown = typed ? words.filter(fits).sort((a, b) => first(a) - first(b)).slice(0, MOST) : [];
  if (!shown.length) { close(); return; }
  list.replaceChildren(...shown.map((word, i) => {
    const item = document.createElement('li');
    item.id = `rz-proposed-${i}`;
    item.setAttribute('role', 'option');
    item.textContent = word;
    return item;
  }));
  chosen = -1;
  list.hidden = false;
  mark();
};
const take = (word) => {
  const box = area();
  const [start, end] = line(box);
  box.setRangeText(word, start, end, 'end');
  box.dispatchEvent(new Event('input', {bubbles: true}));
  box.focus();
  close();
};

const attach = () => {
  const box = area();
  if (!box || box.dataset.proposing) return Boolean(box);
  box.dataset.proposing = '1';
  box.setAttribute('aria-autocomplete', 'list');
  box.setAttribute('aria-controls', list.id);
  box.parentElement.style.position = 'relative';
  box.parentElement.append(list);
  box.addEventListener('input', (event) => { if (event.isTrusted) propose(); });
  box.addEventListener('blur', () => setTimeout(close, 150));
  box.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
      document.querySelector('#ask')?.click();
      event.preventDefault();
      return;
    }
    if (list.hidden) return;
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (step) {
      chosen = (chosen + step + shown.length) % shown.length;
      mark();
    } else if ((event.key === 'Enter' && chosen >= 0) || event.key === 'Tab') {
      take(shown[Math.max(chosen, 0)]);
    } else if (event.key === 'Escape') {
      close();
    } else {
      return;
    }
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);
  list.addEventListener('mousedown', (event) => {
    event.preventDefault();
    const item = event.target.closest('[role=option]');
    if (item) take(item.textContent);
  });
  return true;
};
read();
watch('value', read);
const waiting = setInterval(() => { if (attach()) clearInterval(waiting); }, 100);
