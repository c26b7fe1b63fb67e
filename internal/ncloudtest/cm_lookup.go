package ncloudtest

import (
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"time"
)

// serialText writes a serial number as Certificate Manager does.
func serialText(c *x509.Certificate) string {
	return strings.ToUpper(hex.EncodeToString(c.SerialNumber.Bytes()))
}

// matches compares a name with a filter.
func (s *Simulator) matches(name, filter string) bool {
	if s.behaviour.CM.NameFilter == "contains" {
		return strings.Contains(name, filter)
	}
	return name == filter
}

// cmPage cuts a page, from 1, out of a list; without page and pageSize it is
// the whole unless always.
func (s *Simulator) cmPage(c *call, list []any, filtered, always bool) ([]any, *cmError) {
	if len(list) == 0 {
		if filtered && s.behaviour.CM.EmptyList == "code" {
			return nil, &cmError{code: codeNothingFound, message: "No search result."}
		}
		return []any{}, nil
	}
	q := c.r.URL.Query()
	if !q.Has("page") && !q.Has("pageSize") && !always {
		return list, nil
	}
	page, size := 1, 10
	for key, into := range map[string]*int{"page": &page, "pageSize": &size} {
		if !q.Has(key) {
			continue
		}
		n, err := strconv.Atoi(q.Get(key))
		if err != nil || n < 1 {
			return nil, s.missing(key)
		}
		*into = min(n, 1<<20)
	}
	from := min((page-1)*size, len(list))
	return list[from:min(from+size, len(list))], nil
}

// selected are the certificates that a list's filter lets through, newest last.
func (s *Simulator) selected(c *call, want func(*cmCert) bool) []*cmCert {
	filter := c.r.URL.Query().Get("certificateName")
	var list []*cmCert
	for _, x := range s.cm.certs {
		if filter != "" && !s.matches(x.name, filter) || !want(x) {
			continue
		}
		if x.hidden.reads > 0 || s.now().Before(x.hidden.until) {
			x.hidden.reads--
			continue
		}
		list = append(list, x)
	}
	return list
}

func (s *Simulator) certificateList(c *call, want func(*cmCert) bool) (map[string]any, *cmError) {
	var rows []any
	for _, x := range s.selected(c, want) {
		rows = append(rows, s.row(x))
	}
	page, no := s.cmPage(c, rows, c.r.URL.Query().Has("certificateName"), false)
	if no != nil {
		return nil, no
	}
	return map[string]any{"totalCount": s.cmNum(int64(len(rows))), "sslCertificateList": page}, nil
}

func (s *Simulator) listCertificates(c *call) (map[string]any, *cmError) {
	return s.certificateList(c, func(*cmCert) bool { return true })
}

func (s *Simulator) listCloudCertificates(c *call) (map[string]any, *cmError) {
	return s.certificateList(c, func(x *cmCert) bool { return x.orderID == "" && x.kind != "EXTERNAL" })
}

func (s *Simulator) listAdvancedCertificates(c *call) (map[string]any, *cmError) {
	var orders []any
	byOrder := map[string]map[string]any{}
	for _, x := range s.selected(c, func(x *cmCert) bool { return x.orderID != "" }) {
		o := byOrder[x.orderID]
		if o == nil {
			o = map[string]any{"orderId": x.orderID, "certificates": []any{}}
			byOrder[x.orderID] = o
			orders = append(orders, o)
		}
		rows, _ := o["certificates"].([]any)
		o["certificates"] = append(rows, s.row(x))
	}
	page, no := s.cmPage(c, orders, c.r.URL.Query().Has("certificateName"), false)
	if no != nil {
		return nil, no
	}
	return map[string]any{"totalCount": s.cmNum(int64(len(orders))), "orders": page}, nil
}

// row is a certificate in the lists of API 2.0.
func (s *Simulator) row(x *cmCert) map[string]any {
	status := x.status
	if x.cert != nil && s.now().After(x.cert.NotAfter) && (status == "1" || status == "2" || status == "3") {
		status = "-2"
	}
	row := map[string]any{"certificateNo": s.cmNum(x.no), "certificateName": x.name, "memberNo": memberNo, "commonName": x.commonName,
		"dnsName": strings.Join(x.dnsNames, ","), "statusCode": status, "statusName": statusNames[status], "certificateType": x.kind,
		"domainCode": "MULTI", "updateDate": s.cmDate(x.updated), "issueType": "CONSOLE", "revokeDate": s.cmDate(x.revoked), "usedInstanceNoList": nil}
	if x.orderID != "" {
		row["orderId"] = x.orderID
	}
	if x.cert != nil {
		kind, bits := keyKind(x.cert.PublicKey)
		row["certPublicKeyInfo"], row["issuer"], row["serialNumber"] = kind+" "+strconv.Itoa(bits), x.cert.Issuer.CommonName, serialText(x.cert)
		row["signatureAlgorithm"], row["issueDate"] = x.cert.SignatureAlgorithm.String(), s.cmDate(x.updated)
		row["notBefore"], row["notAfter"] = s.cmDate(x.cert.NotBefore), s.cmDate(x.cert.NotAfter)
	}
	return row
}

// rowV1 is a certificate in the answers of API 1.0.
func (s *Simulator) rowV1(x *cmCert) map[string]any {
	row := map[string]any{"certificateNo": s.cmNum(x.no), "certificateType": x.kind, "certificateName": x.name, "memberNo": memberNo,
		"dnInfo": "CN=" + x.commonName, "domainAddress": x.commonName, "subDomainAddress": strings.Join(x.dnsNames, ",")}
	return row
}

func (s *Simulator) getCertificateList(c *call) (map[string]any, *cmError) {
	q := c.r.URL.Query()
	rows := []any{}
	for _, x := range s.selected(c, func(x *cmCert) bool { return x.cert != nil }) {
		if no := q.Get("certificateNo"); no != "" && no != strconv.FormatInt(x.no, 10) || q.Get("instanceNo") != "" {
			continue
		}
		rows = append(rows, s.rowV1(x))
	}
	if len(rows) == 0 && len(q) > 0 && s.behaviour.CM.EmptyList == "code" {
		return nil, &cmError{code: codeNothingFound, message: "No search result."}
	}
	return map[string]any{"totalRows": s.cmNum(int64(len(rows))), "sslCertificateList": rows}, nil
}

func (s *Simulator) listCertificateTypes(*call) (map[string]any, *cmError) {
	rows := []any{}
	for _, t := range [][2]string{{"NCP_PAID_DV_01", "Advanced DV"}, {"NCP_PAID_OV_01", "Advanced OV"}, {"NCP_FREE_DV_01", "Cloud Basic"}} {
		rows = append(rows, map[string]any{"certificateTypeCode": t[0], "certificateTypeName": t[1]})
	}
	return map[string]any{"totalCount": s.cmNum(int64(len(rows))), "certificatetype": rows}, nil
}

func (s *Simulator) listDcvStatuses(c *call) (map[string]any, *cmError) {
	x, no := s.theCert(c)
	if no != nil {
		return nil, no
	}
	domain := c.r.URL.Query().Get("domainAddress")
	if domain == "" {
		return nil, s.missing("domainAddress")
	}
	b := s.behaviour.CM
	rows := []any{}
	for _, d := range x.dcv {
		if d.domain != baseDomain(domain) || d.covered && b.CoveredRow == "empty" || s.now().Before(x.requested.Add(millis(b.RecordDelayMS))) {
			continue
		}
		row := map[string]any{"validSn": s.cmNum(d.sn), "requestSn": "R-" + strconv.FormatInt(x.no, 10), "validStatusCode": d.status, "txtId": strconv.FormatInt(d.txtID, 10)}
		for field, v := range map[string]string{b.NameField: d.name, b.ValueField: d.value} {
			if field != "" {
				row[field] = v
			}
		}
		rows = append(rows, row)
	}
	if !slices.ContainsFunc(x.dcv, func(d *dcv) bool { return d.domain == baseDomain(domain) }) && b.EmptyList == "code" {
		return nil, &cmError{code: codeNothingFound, message: "No search result."}
	}
	return map[string]any{"totalRows": s.cmNum(int64(len(rows))), "dnsVerificationCount": s.cmNum(int64(len(rows))), "dnsVerificationList": rows,
		"emailVerificationCount": s.cmNum(0), "emailVerificationList": []any{}}, nil
}

// listRecentCertChanges has odd rules: minutes and seconds together find nothing.
func (s *Simulator) listRecentCertChanges(c *call) (map[string]any, *cmError) {
	q, now := c.r.URL.Query(), s.now()
	from, to := now, now
	spans := 0
	for _, u := range []struct {
		key  string
		unit time.Duration
		most int
	}{{"minutes", time.Minute, 10080}, {"seconds", time.Second, 604800}} {
		if !q.Has(u.key) {
			continue
		}
		n, err := strconv.Atoi(q.Get(u.key))
		if err != nil || n < 1 || n > u.most {
			return nil, s.missing(u.key)
		}
		spans++
		from = now.Add(-time.Duration(n) * u.unit)
	}
	if q.Has("startDateTime") != q.Has("endDateTime") || spans == 0 && !q.Has("startDateTime") {
		return nil, s.missing("minutes, seconds or startDateTime and endDateTime")
	}
	if q.Has("startDateTime") {
		spans++
		for key, into := range map[string]*time.Time{"startDateTime": &from, "endDateTime": &to} {
			t, err := time.ParseInLocation(s.behaviour.CM.DateFormat, q.Get(key), korea())
			if err != nil {
				return nil, s.missing(key)
			}
			*into = t
		}
	}
	rows := []any{}
	for _, x := range s.cm.certs {
		word := map[string]string{"0": "Ongoing", "1": "Normal", "2": "Normal", "3": "Normal", "-4": "Validation timed out"}[x.status]
		if spans != 1 || word == "" || x.orderID == "" || x.updated.Before(from) || x.updated.After(to) {
			continue
		}
		rows = append(rows, map[string]any{"orderId": x.orderID, "certificateId": s.cmNum(x.no), "status": word})
	}
	return map[string]any{"totalCount": s.cmNum(int64(len(rows))), "orders": rows}, nil
}
