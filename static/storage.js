/** What this browser, or this tab, remembers. Storage may be switched off; the page works without. */

export function recall(store, key) {
  try { return JSON.parse(store.getItem(`rollcall.${key}`)); } catch { return null; }
}
export function remember(store, key, value) {
  try { store.setItem(`rollcall.${key}`, JSON.stringify(value)); } catch { /* private mode */ }
}
