(() => {
  const data = JSON.parse(document.getElementById("confusions").textContent);
  const matrix = document.querySelector(".matrix"), panel = document.querySelector(".cell");
  const [left, top, width, height] = data.box, count = data.classes.length;
  const cells = new Map(data.cells.map((cell) => [cell[0] * count + cell[1], cell]));
  const cursor = matrix.appendChild(document.createElement("div"));
  cursor.className = "cursor";
  let at = [data.cells[0][0], data.cells[0][1]];

  const percent = (share) => `${(100 * share).toFixed(1)} %`;

  // In a matrix of many classes a cell is smaller than a fingertip: the nearest one that is there.
  function near(row, column) {
    const reach = Math.ceil(count / 60);
    let best = null, distance = Infinity;
    if (count <= 20 || cells.has(row * count + column)) return [row, column];
    for (const [r, c] of data.cells) {
      const away = Math.max(Math.abs(r - row), Math.abs(c - column));
      if (away <= reach && away < distance) [best, distance] = [[r, c], away];
    }
    return best ?? [row, column];
  }

  function show(row, column) {
    at = [row, column];
    const [, , images, shown] = cells.get(row * count + column) ?? [row, column, 0, []];
    const name = panel.querySelector("h3"), text = panel.querySelector("p");
    name.replaceChildren(data.classes[row], row === column ? "" : " → ");
    if (row !== column) {
      const guess = name.appendChild(document.createElement("span"));
      guess.className = "wrong";
      guess.textContent = data.classes[column];
    }
    const total = data.totals[row];
    text.textContent = `${images} of ${total} test samples of ${data.classes[row]}`
      + (total ? `, ${percent(images / total)}` : "")
      + (shown.length && shown.length < images ? `; the surest ${shown.length}:` : "");
    panel.querySelector(".tiles").replaceChildren(...shown.map((position) => {
      const image = new Image();
      image.src = data.images[position];
      image.alt = "";
      return image;
    }));
    const size = Math.max(1 / count, 0.012);
    cursor.style.left = `${100 * (left + width * ((column + 0.5) / count - size / 2))}%`;
    cursor.style.top = `${100 * (top + height * ((row + 0.5) / count - size / 2))}%`;
    cursor.style.width = `${100 * width * size}%`;
    cursor.style.height = `${100 * height * size}%`;
  }

  function point(event) {
    const area = matrix.querySelector("svg").getBoundingClientRect();
    const column = Math.floor(((event.clientX - area.left) / area.width - left) / width * count);
    const row = Math.floor(((event.clientY - area.top) / area.height - top) / height * count);
    if (row >= 0 && row < count && column >= 0 && column < count) show(...near(row, column));
  }

  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  matrix.addEventListener("keydown", (event) => {
    if (!(event.key in steps)) return;
    event.preventDefault();
    const [row, column] = at.map((value, axis) => value + steps[event.key][axis]);
    if (row >= 0 && row < count && column >= 0 && column < count) show(row, column);
  });
  matrix.addEventListener("pointermove", point);
  matrix.addEventListener("click", point);
  show(...at);
  panel.hidden = false;
})();
