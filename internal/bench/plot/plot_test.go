package plot

import (
	"bytes"
	"image/color"
	"image/png"
	"testing"
)

func TestPictureShowsEveryPoint(t *testing.T) {
	c := Chart{
		Title: "t", X: "x", Y: "y", Note: "n",
		Lines: []Line{{"a", []Point{{0, 0}, {10, 50}, {20, 100}}}, {"b", []Point{{5, 90}}}},
	}
	var out bytes.Buffer
	if err := c.Write(&out); err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(&out)
	if err != nil {
		t.Fatal(err)
	}
	if b := img.Bounds(); b.Dx() != width || b.Dy() != height {
		t.Fatalf("the picture is %v", b)
	}
	p := &picture{xmax: 20, ymax: 100}
	for i, l := range c.Lines {
		for _, v := range l.Points {
			x, y := p.at(v)
			if got := color.RGBAModel.Convert(img.At(x, y)); got != palette()[i] {
				t.Errorf("line %s has %v at %v", l.Name, got, v)
			}
		}
	}
}

func TestNothingToShow(t *testing.T) {
	for _, c := range []Chart{{}, {Lines: []Line{{"a", nil}}}, {Lines: []Line{{"a", []Point{{0, 0}}}}}} {
		if err := c.Write(&bytes.Buffer{}); err == nil {
			t.Errorf("%+v was drawn", c)
		}
	}
}

func TestSteps(t *testing.T) {
	for reach, want := range map[float64]float64{1: 0.2, 5: 1, 6: 1, 60: 10, 100: 20, 1234: 500, 0.07: 0.02} {
		if got := step(reach); got < want*0.999 || got > want*1.001 {
			t.Errorf("%v: got %v, want %v", reach, got, want)
		}
	}
}
