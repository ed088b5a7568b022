package pendinguploads

// WhileRead has do called while the bytes of the next piece are taken from the driver.
func (p *Postgres) WhileRead(do func()) {
	made := p.chunks.New
	p.chunks.New = func() any { do(); return made() }
}

// WhyEnded is what a reader says of an error after its context has ended.
var WhyEnded = whyEnded
