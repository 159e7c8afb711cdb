// Package plot draws measurements as line charts in PNG files.
package plot

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"math"

	"golang.org/x/image/font"
	"golang.org/x/image/font/basicfont"
	"golang.org/x/image/math/fixed"
)

// Chart is one picture. Both axes begin at zero and are linear.
type Chart struct {
	Title, X, Y string // what is shown, and what the axes count, with the unit
	Note        string // below the picture: when and where it was measured
	Lines       []Line
}

// Line is one series of points, in ascending order of X.
type Line struct {
	Name   string
	Points []Point
}

// Point is one measurement.
type Point struct{ X, Y float64 }

// Size of a picture and of the room around the axes, in pixels.
const (
	width, height            = 960, 560
	left, right, top, bottom = 90, 30, 50, 90
	ticks                    = 6 // on an axis, about
	dot                      = 3 // radius of a point
)

var (
	ink  = color.RGBA{0x22, 0x22, 0x22, 0xff}
	grid = color.RGBA{0xdd, 0xdd, 0xdd, 0xff}
)

// palette has colours that people with any colour vision can tell apart
// (Okabe and Ito, 2008).
func palette() []color.RGBA {
	return []color.RGBA{{0x00, 0x72, 0xb2, 0xff}, {0xd5, 0x5e, 0x00, 0xff}, {0x00, 0x9e, 0x73, 0xff}, {0xcc, 0x79, 0xa7, 0xff}, {0x56, 0xb4, 0xe9, 0xff}}
}

// Write draws the chart. A chart without points is an error.
func (c Chart) Write(w io.Writer) error {
	xmax, ymax := c.reach()
	if xmax <= 0 || ymax <= 0 {
		return fmt.Errorf("chart %q has nothing to show", c.Title)
	}
	p := &picture{RGBA: image.NewRGBA(image.Rect(0, 0, width, height)), xstep: step(xmax), ystep: step(ymax)}
	p.xmax, p.ymax = math.Ceil(xmax/p.xstep)*p.xstep, math.Ceil(ymax/p.ystep)*p.ystep
	draw.Draw(p, p.Bounds(), image.White, image.Point{}, draw.Src)
	p.axes(c)
	colours := palette()
	for i, l := range c.Lines {
		p.series(l, colours[i%len(colours)])
		p.key(i, l.Name, colours[i%len(colours)])
	}
	return png.Encode(w, p)
}

func (c Chart) reach() (x, y float64) {
	for _, l := range c.Lines {
		for _, p := range l.Points {
			x, y = max(x, p.X), max(y, p.Y)
		}
	}
	return x, y
}

// step is a round distance between the ticks of an axis that ends at reach.
func step(reach float64) float64 {
	rough := reach / ticks
	magnitude := math.Pow(10, math.Floor(math.Log10(rough)))
	for _, m := range []float64{1, 2, 5} {
		if rough <= m*magnitude {
			return m * magnitude
		}
	}
	return 10 * magnitude
}

type picture struct {
	*image.RGBA
	xmax, ymax, xstep, ystep float64
}

// at is where a point lies in the picture.
func (p *picture) at(v Point) (x, y int) {
	return left + int(v.X/p.xmax*(width-left-right)), height - bottom - int(v.Y/p.ymax*(height-top-bottom))
}

func (p *picture) axes(c Chart) {
	for i := 0; float64(i)*p.xstep <= p.xmax; i++ {
		v := float64(i) * p.xstep
		x, y := p.at(Point{X: v})
		p.line(x, y, x, top, grid)
		p.text(x, y+18, fmt.Sprintf("%g", v), middle)
	}
	for i := 0; float64(i)*p.ystep <= p.ymax; i++ {
		v := float64(i) * p.ystep
		x, y := p.at(Point{Y: v})
		p.line(x, y, width-right, y, grid)
		p.text(x-8, y+4, fmt.Sprintf("%g", v), end)
	}
	x, y := p.at(Point{})
	p.line(x, y, width-right, y, ink)
	p.line(x, y, x, top, ink)
	p.text(width/2, 22, c.Title, middle)
	p.text((left+width-right)/2, height-bottom+40, c.X, middle)
	p.text(12, top-16, c.Y, begin)
	p.text(left, height-14, c.Note, begin)
}

func (p *picture) series(l Line, c color.RGBA) {
	for i, v := range l.Points {
		x, y := p.at(v)
		draw.Draw(p, image.Rect(x-dot, y-dot, x+dot+1, y+dot+1), image.NewUniform(c), image.Point{}, draw.Src)
		if i > 0 {
			fromX, fromY := p.at(l.Points[i-1])
			p.line(fromX, fromY, x, y, c)
			p.line(fromX, fromY+1, x, y+1, c)
		}
	}
}

// key explains the i-th colour, in the corner that measurements seldom reach.
func (p *picture) key(i int, name string, c color.RGBA) {
	x, y := left+16, top+16+18*i
	draw.Draw(p, image.Rect(x, y-4, x+18, y), image.NewUniform(c), image.Point{}, draw.Src)
	p.text(x+26, y+2, name, begin)
}

// line draws by Bresenham's method.
func (p *picture) line(x, y, toX, toY int, c color.RGBA) {
	dx, dy := abs(toX-x), -abs(toY-y)
	sx, sy := sign(toX-x), sign(toY-y)
	for e := dx + dy; ; {
		p.SetRGBA(x, y, c)
		if x == toX && y == toY {
			return
		}
		if 2*e >= dy {
			e += dy
			x += sx
		}
		if 2*e <= dx && y != toY {
			e += dx
			y += sy
		}
	}
}

func abs(n int) int { return max(n, -n) }

func sign(n int) int {
	switch {
	case n > 0:
		return 1
	case n < 0:
		return -1
	}
	return 0
}

// align says which part of a text lies at its place.
type align int

const (
	begin align = iota
	middle
	end
)

func (p *picture) text(x, y int, s string, a align) {
	d := font.Drawer{Dst: p, Src: image.NewUniform(ink), Face: basicfont.Face7x13, Dot: fixed.P(x, y)}
	switch w := d.MeasureString(s); a {
	case middle:
		d.Dot.X -= w / 2
	case end:
		d.Dot.X -= w
	}
	d.DrawString(s)
}
