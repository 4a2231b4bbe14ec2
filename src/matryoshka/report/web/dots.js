// Dots of one colour on a canvas, by the ten thousand: small ones are written as pixels, a tenth of the time that the canvas itself
// takes for them; larger ones are copies of a disc that is drawn once.
var matryoshka = window.matryoshka || {};

(function () {
  "use strict";

  const SMALL = 1.7;  // radius up to which a square of pixels looks round
  const words = new Map();

  // A colour and an opacity as the pixel that they make.
  function pixel(colour, alpha) {
    const name = `${colour} ${alpha}`;
    if (!words.has(name)) {
      const canvas = document.createElement("canvas");
      canvas.width = canvas.height = 1;
      const context = canvas.getContext("2d");
      context.fillStyle = colour;
      context.fillRect(0, 0, 1, 1);
      const { data } = context.getImageData(0, 0, 1, 1);
      data[3] = Math.round(255 * alpha);
      words.set(name, new Uint32Array(data.buffer)[0]);
    }
    return words.get(name);
  }

  // at(i): where point i lies, in pixels of the page. Nothing else may be on the canvas yet.
  class Pixels {
    constructor(context, ratio, radius) {
      const { width, height } = context.canvas;
      Object.assign(this, { context, ratio, width, height, side: Math.max(2, Math.round(2 * radius * ratio)) });
      this.image = context.createImageData(width, height);
      this.words = new Uint32Array(this.image.data.buffer);
    }

    draw(colour, alpha, points, wanted, { scale, x, y, left, top }) {
      const { ratio, width, height, side, words: all } = this, word = pixel(colour, alpha);
      for (const i of points) {
        if (!wanted(i)) continue;
        const column = Math.round((x[i] * scale + left) * ratio - side / 2),
          row = Math.round((y[i] * scale + top) * ratio - side / 2);
        if (column < 0 || row < 0 || column + side > width || row + side > height) continue;
        for (let line = row; line < row + side; line += 1) {
          const start = line * width + column;
          all.fill(word, start, start + side);
        }
      }
    }

    end() {
      this.context.putImageData(this.image, 0, 0);
    }
  }

  class Discs {
    constructor(context, ratio, radius) {
      Object.assign(this, { context, ratio, radius });
      const { width, height } = context.canvas;
      Object.assign(this, { width: width / ratio, height: height / ratio, side: Math.ceil(2 * (radius + 0.5) * ratio) / ratio });
    }

    draw(colour, alpha, points, wanted, { scale, x, y, left, top }) {
      const { context, side, width, height } = this, disc = this.disc(colour), half = side / 2;
      context.globalAlpha = alpha;
      for (const i of points) {
        const column = x[i] * scale + left - half, row = y[i] * scale + top - half;
        if (column > -side && row > -side && column < width && row < height && wanted(i)) context.drawImage(disc, column, row, side,
          side);
      }
      context.globalAlpha = 1;
    }

    disc(colour) {
      const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
      canvas.width = canvas.height = this.side * this.ratio;
      context.fillStyle = colour;
      context.arc(canvas.width / 2, canvas.width / 2, this.radius * this.ratio, 0, 2 * Math.PI);
      context.fill();
      return canvas;
    }

    end() {}
  }

  // What draws dots of this radius; `ratio`: the screen's pixels in one of the page's.
  matryoshka.dots = (context, ratio, radius) => new (radius < SMALL ? Pixels : Discs)(context, ratio, radius);
})();
