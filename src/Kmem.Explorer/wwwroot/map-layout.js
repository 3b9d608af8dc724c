// Where a cell of the map is on the screen.
//
// 512 cells are a tile; in a tile, the cells follow the Z-order curve, so that every aligned block of 2^n cells is a
// rectangle: a buddy lies beside or below its buddy, and a merge is seen as one.
//
//    0  1  4  5 16 …        tile 0 │ tile 1 │ tile 2      tiles from left to right, then down
//    2  3  6  7 18          ───────┼────────┼───────
//    8  9 12 13 24          tile 3 │ tile 4 │ tile 5
//
// At level 0 with pageblocks of order 9 a tile is a pageblock: 32 × 16 frames.

export const TILE_CELLS = 512;
export const TILE_WIDTH = 32;
export const TILE_HEIGHT = 16;

const X_IN_TILE = new Uint8Array(TILE_CELLS);
const Y_IN_TILE = new Uint8Array(TILE_CELLS);
const CELL_AT = new Uint16Array(TILE_CELLS);

for (let i = 0; i < TILE_CELLS; i++) {
    let x = 0;
    let y = 0;
    for (let bit = 0; bit < 9; bit++) {
        const set = (i >> bit) & 1;
        if (bit % 2 === 0) x |= set << (bit >> 1);
        else y |= set << (bit >> 1);
    }
    X_IN_TILE[i] = x;
    Y_IN_TILE[i] = y;
    CELL_AT[y * TILE_WIDTH + x] = i;
}

/** A grid of tiles, some wide. */
export class MapLayout {
    constructor(tilesWide, tilesHigh) {
        this.tilesWide = tilesWide;
        this.tilesHigh = tilesHigh;
        this.width = tilesWide * TILE_WIDTH;
        this.height = tilesHigh * TILE_HEIGHT;
        this.cells = tilesWide * tilesHigh * TILE_CELLS;
        this.pixelOf = new Uint32Array(this.cells);
        for (let i = 0; i < this.cells; i++) this.pixelOf[i] = this.y(i) * this.width + this.x(i);
    }

    x(cell) {
        const tile = Math.floor(cell / TILE_CELLS);
        return (tile % this.tilesWide) * TILE_WIDTH + X_IN_TILE[cell % TILE_CELLS];
    }

    y(cell) {
        const tile = Math.floor(cell / TILE_CELLS);
        return Math.floor(tile / this.tilesWide) * TILE_HEIGHT + Y_IN_TILE[cell % TILE_CELLS];
    }

    /** The cell at a place in cells from the top left; −1 outside. */
    cellAt(x, y) {
        if (x < 0 || y < 0 || x >= this.width || y >= this.height) return -1;
        const tile = Math.floor(y / TILE_HEIGHT) * this.tilesWide + Math.floor(x / TILE_WIDTH);
        return tile * TILE_CELLS + CELL_AT[(y % TILE_HEIGHT) * TILE_WIDTH + (x % TILE_WIDTH)];
    }
}
