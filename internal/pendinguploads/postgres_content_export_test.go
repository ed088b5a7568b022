package pendinguploads

// OnRowRead has do called while the bytes of the next piece are taken from the driver.
func (p *Postgres) OnRowRead(do func()) {
	made := p.chunks.New
	p.chunks.New = func() any { do(); return made() }
}

// WithContextError is what a reader says of an error after its context has ended.
var WithContextError = withContextError
