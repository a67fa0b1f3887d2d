"use strict";
// Labels stay in this browser until they are saved to a file; nothing is sent anywhere.
const sheet = document.querySelector("main article")?.dataset.sheet;
const cases = [...document.querySelectorAll("main article")];
const chosen = (one, name) => one.querySelector(`input[name^="${name}-"]:checked`)?.value;
const labeller = document.getElementById("labeller");
const read = (one) => ({
  code: one.dataset.code, labeller: labeller.value.trim() || "1",
  violating: chosen(one, "violating"), score: chosen(one, "score"), note: one.querySelector("textarea").value,
});
const whole = (label) => label.violating && label.score;
function keep() {
  const labels = cases.map(read);
  try { localStorage.setItem(sheet, JSON.stringify(labels)); } catch { /* Private windows keep nothing. */ }
  document.querySelectorAll(".count").forEach((place) => { place.textContent = labels.filter(whole).length; });
  cases.forEach((one, number) => one.classList.toggle("done", Boolean(whole(labels[number]))));
}
function recall() {
  let labels = [];
  try { labels = JSON.parse(localStorage.getItem(sheet)) || []; } catch { return; }
  for (const label of labels) {
    const one = cases.find((some) => some.dataset.code === label.code);
    if (!one) continue;
    labeller.value = label.labeller;
    for (const name of ["violating", "score"]) {
      const input = [...one.querySelectorAll(`input[name^="${name}-"]`)].find((some) => some.value === label[name]);
      if (input) input.checked = true;
    }
    one.querySelector("textarea").value = label.note;
  }
}
function save() {
  const labels = cases.map(read).filter(whole);
  const lines = labels.map((one) => JSON.stringify({
    ...one, violating: one.violating === "yes", score: Number(one.score),
  }));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "application/jsonl" }));
  link.download = `labels-${sheet}-${labels[0]?.labeller || "1"}.jsonl`;
  link.click();
  URL.revokeObjectURL(link.href);
}
recall();
keep();
document.addEventListener("input", keep);
document.querySelectorAll("button.save").forEach((button) => button.addEventListener("click", save));
