package privateca

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A list is Get End Cert List read page by page, maybe by several Finds.
//
// Pages are read in ascending order, and certificates issued meanwhile only
// move others to later pages, whatever the order of the list; so nothing that
// was there at the start is missed. A certificate removed meanwhile could move
// another to a page read already: then the list is discarded.
type list struct {
	begun   time.Time // before the first call
	count   int64     // signing count at the start
	first   int64     // totalCnt on the first page
	total   int64     // totalCnt on the last page read
	next    int64     // page to read next
	pages   int64     // as the last page read says
	entries []entry
	seen    map[string]bool
	done    bool
}

// maxListAge is when a list half read is begun anew.
const maxListAge = time.Hour

// maxEntries bounds a list; a CA has 30,000 certificates unless NCP raised it.
const maxEntries = 1_000_000

// readList returns a complete list that was begun after the Submit, and after
// settled if that has passed already. The caller holds listing.
func (i *Issuer) readList(ctx context.Context, submitted, settled time.Time, budget *int) (*list, error) {
	now := i.cfg.Now()
	since := submitted
	if !now.Before(settled) {
		since = settled
	}
	if i.list == nil || i.list.begun.Before(since) || !i.list.done && now.Sub(i.list.begun) > maxListAge {
		i.list = nil
		s, err := i.state(ctx, 0)
		if err != nil {
			return nil, fmt.Errorf("read signing count before the list: %w", err)
		}
		i.list = &list{begun: now, count: s.SigningCount, next: 1, pages: 1, seen: map[string]bool{}}
	}
	l := i.list
	for !l.done && l.next <= l.pages {
		if *budget--; *budget < 0 {
			return nil, fmt.Errorf("the list has %d pages, too many to read at once, will go on from page %d", l.pages, l.next)
		}
		p, err := i.api.getEndCertList(ctx, l.next)
		if err != nil {
			return nil, fmt.Errorf("read page %d of the list: %w", l.next, err)
		}
		if err := l.add(p); err != nil {
			i.list = nil
			return nil, fmt.Errorf("page %d of the list: %w", l.next, err)
		}
	}
	if l.done {
		return l, nil
	}
	s, err := i.state(ctx, 0)
	if err != nil {
		return nil, fmt.Errorf("read signing count after the list: %w", err)
	}
	// Nothing was removed if the list has grown by what was issued; and all that
	// was there at the start must have been seen.
	grown, issued, seen := l.total-l.first, s.SigningCount-l.count, int64(len(l.entries))
	if grown != issued || seen < l.first || seen > l.total {
		i.list = nil
		return nil, fmt.Errorf("the list changed while it was read: %d of %d entries, grown by %d, %d issued", len(l.entries), l.total, grown, issued)
	}
	l.done = true
	return l, nil
}

// add takes in the page that was asked for. An error means that the list cannot
// be trusted.
func (l *list) add(p *page) error {
	pages := p.pages
	if pages <= 0 {
		pages = 1
		if n := int64(len(p.serials)); n > 0 && l.next == 1 {
			pages = (p.total + n - 1) / n // not told: work it out from the first page
		} else if l.next > 1 {
			pages = l.pages
		}
	}
	switch {
	case p.current != 0 && p.current != l.next:
		return fmt.Errorf("the service returned page %d: it may not know the parameter pageNo", p.current)
	case l.next > 1 && p.total < l.total:
		return errors.New("the list became shorter while it was read")
	case p.total > maxEntries || int64(len(p.serials)) > p.total:
		return fmt.Errorf("%d entries, of %d in all", len(p.serials), p.total)
	case l.next < pages && len(p.serials) == 0:
		return errors.New("it is empty")
	}
	if l.next == 1 {
		l.first = p.total
	}
	for _, text := range p.serials {
		n, err := parseSerial(text)
		if err != nil {
			return err
		}
		if key := serialKey(n); !l.seen[key] {
			l.seen[key] = true
			l.entries = append(l.entries, entry{serial: n, text: text})
		}
	}
	l.total, l.pages = p.total, pages
	l.next++
	return nil
}
