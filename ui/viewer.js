// The image: a click or the arrow keys point at a place, the wheel leafs through a volume.
// `element` stays while its content is redrawn, so the listeners are set once.
const place = (frame, x, y) => trigger('click', {frame: frame.dataset.frame, x, y});
let focused = null;

element.addEventListener('click', (event) => {
  const frame = event.target.closest('[data-frame]');
  if (!frame) return;
  const box = frame.getBoundingClientRect();
  focused = frame.dataset.frame;
  place(frame, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
});

const STEPS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
element.addEventListener('keydown', (event) => {
  const frame = event.target.closest('[data-frame]');
  if (!frame || !(event.key in STEPS)) return;
  event.preventDefault();
  const [across, down] = STEPS[event.key];
  const step = event.shiftKey ? 0.1 : 0.02;
  const x = Math.min(Math.max(Number(frame.dataset.x) + across * step, 0), 0.999);
  const y = Math.min(Math.max(Number(frame.dataset.y) + down * step, 0), 0.999);
  frame.dataset.x = x;
  frame.dataset.y = y;
  focused = frame.dataset.frame;
  place(frame, x, y);
});

let turned = 0;
element.addEventListener('wheel', (event) => {
  const frame = event.target.closest('[data-frame]');
  if (!frame || frame.dataset.frame === 'film') return;
  event.preventDefault();
  turned += Math.sign(event.deltaY);
  clearTimeout(element.leafing);
  element.leafing = setTimeout(() => {
    trigger('input', {frame: frame.dataset.frame, step: turned});
    turned = 0;
  }, 40);
}, {passive: false});

element.addEventListener('focusout', (event) => { if (event.relatedTarget) focused = null; });
watch('value', () => {
  // A redraw must not take the keyboard's focus away.
  if (focused) element.querySelectorAll(`[data-frame="${focused}"]`).forEach((one, i, all) => {
    if (i === all.length - 1) one.focus({preventScroll: true});
  });
});
