// SPDX-FileCopyrightText: The dynamig Authors
// SPDX-License-Identifier: Apache-2.0

package serve

// Secure is Serve with TLS, on a listener.
var Secure = secure
